"""Measures how fast this machine embeds a corpus with a model, and remembers it for ``plan``."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.sample import sampled_texts
from kosbert_ray.errors import InputError
from kosbert_ray.job import Job
from kosbert_ray.model.files import sha256
from kosbert_ray.model.source import cache_folder
from kosbert_ray.model.spec import ModelSpec

SECONDS = 10.0
TEXTS = 512  # per slice, so that several slices are measured
WARM_UP = 2  # batches with cold caches


@dataclass(frozen=True)
class Speed:
    """The tokens per second of one encoder that has this machine to itself, and its settings."""

    tokens_per_second: float
    device: str
    engine: str
    precision: str


def measure(config: JobConfig) -> Speed:
    """Embeds texts of the job's input for about ten seconds, and remembers the speed.

    Raises:
        KosbertError: the input or the model cannot be read.
    """
    from kosbert_ray.encoder.encoder import Encoder

    job = Job.resolve(config)
    encoder = Encoder(job.spec, config.encoder)
    measured: list[tuple[int, float]] = []
    for texts in sampled_texts(job.reader(), job.fragments(), config.plan.slices):
        tokens = encoder.tokenizer(texts.take(pa.array(range(0, len(texts), max(1, len(texts) // TEXTS)))))
        started = time.perf_counter()
        encoder.encode_tokens(tokens)
        measured.append((int(tokens.lengths.sum()), time.perf_counter() - started))
        if sum(seconds for _, seconds in measured[WARM_UP:]) > SECONDS:
            break
    counted = measured[WARM_UP:] or measured[-1:]
    tokens_seen, seconds = (sum(values) for values in zip(*counted, strict=True)) if counted else (0, 0.0)
    if not tokens_seen:
        raise InputError(f"{job.corpus.storage.url()}: there are no texts to measure with")
    speed = Speed(tokens_seen / seconds, encoder.device, encoder.engine, encoder.precision)
    path = _memory(encoder.spec, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(speed)), "utf-8")
    return speed


def remembered(spec: ModelSpec, config: JobConfig) -> Speed | None:
    """The speed measured on this machine for this model and these options; None if it was not measured."""
    try:
        return Speed(**json.loads(_memory(spec, config).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _memory(spec: ModelSpec, config: JobConfig) -> Path:
    parts = [
        sha256(spec.folder, spec.weight_files),
        str(config.encoder.model_dump(exclude={"actors"})),
        platform.processor(),
        platform.node(),
    ]
    return cache_folder("speed") / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.json"
