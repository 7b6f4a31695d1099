"""Measures how fast this machine embeds a corpus with a model, and remembers it for ``plan``."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.sample import sampled_texts
from kosbert_ray.errors import InputError
from kosbert_ray.job import Job
from kosbert_ray.model.files import sha256
from kosbert_ray.model.source import cache_folder
from kosbert_ray.model.spec import ModelSpec

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder

SECONDS = 2.0  # of a round
ROUNDS = 5
TEXTS = 512  # per slice, so that several slices are measured
WARM_UP = 2  # parts with cold caches


@dataclass(frozen=True)
class Speed:
    """The speed of one encoder that has this machine to itself.

    Attributes:
        tokens_per_second: the median of the rounds.
        device, engine, precision: its settings.
        rounds: how often the same texts were embedded.
        spread: difference between the fastest and the slowest round, as a share of the median.
    """

    tokens_per_second: float
    device: str
    engine: str
    precision: str
    rounds: int = 1
    spread: float = 0.0


def measure(config: JobConfig) -> Speed:
    """Embeds texts of the job's input for about ten seconds, as a run does, and remembers the speed.

    The engine is the one that a run takes, and a thread tokenizes the next texts while the encoder works.

    Raises:
        KosbertError: the input or the model cannot be read.
    """
    from kosbert_ray.encoder.encoder import Encoder

    job = Job.resolve(config).with_engine()
    encoder = Encoder(job.spec, job.config.encoder, kinds=job.kinds)
    found = sampled_texts(job.reader(), job.fragments(), config.plan.slices)
    parts = [texts.take(pa.array(range(0, len(texts), max(1, len(texts) // TEXTS)))) for texts in found if len(texts)]
    if not parts:
        raise InputError(f"{job.corpus.storage.url()}: there are no texts to measure with")
    _round(encoder, parts[:WARM_UP])
    chosen, tokens, seconds = parts[:1], *_round(encoder, parts[:1])
    while seconds < SECONDS and len(chosen) < len(parts):
        more = parts[len(chosen) : 2 * len(chosen)]
        chosen = [*chosen, *more]
        tokens, seconds = _round(encoder, chosen)
    times = [seconds, *(_round(encoder, chosen)[1] for _ in range(ROUNDS - 1))]
    if not tokens:
        raise InputError(f"{job.corpus.storage.url()}: there are no texts to measure with")
    middle = statistics.median(times)
    spread = (max(times) - min(times)) / middle
    speed = Speed(tokens / middle, encoder.device, encoder.engine, encoder.precision, len(times), spread)
    path = _memory(encoder.spec, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(speed)), "utf-8")
    return speed


def _round(encoder: Encoder, parts: Sequence[pa.Array]) -> tuple[int, float]:
    """Embeds texts part by part; returns the number of tokens and the seconds."""
    started = time.perf_counter()
    count = 0
    with ThreadPoolExecutor(1) as tokenizing:
        for tokens in tokenizing.map(encoder.tokenizer, parts):
            encoder.encode_tokens(tokens)
            count += int(tokens.lengths.sum())
    return count, time.perf_counter() - started


def remembered(spec: ModelSpec, config: JobConfig) -> Speed | None:
    """The speed measured on this machine for this model and these options; None if it was not measured."""
    try:
        return Speed(**json.loads(_memory(spec, config).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _memory(spec: ModelSpec, config: JobConfig) -> Path:
    parts = [
        sha256(spec.folder, spec.weight_files),
        str(config.encoder.model_dump(exclude={"actors"})) + ",".join(config.output.vectors),
        platform.processor(),
        platform.node(),
    ]
    return cache_folder("speed") / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.json"
