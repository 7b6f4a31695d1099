"""Picks the engine: the requested one, or the fastest of those that support the device and the precision."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch

from kosbert_ray.encoder.bisection import in_streams
from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.engines.base import EngineSettings
from kosbert_ray.encoder.files import sha256
from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.encoder.source import cache_folder
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.errors import ModelError

TRIAL_LENGTHS = (12, 16, 20, 24, 28, 40, 64, 128)  # tokens per sequence
TRIAL_TOKENS = 512  # per length
TRIAL_RUNS = 3


def pick_engine(spec: ModelSpec, requested: str, settings: EngineSettings) -> str:
    """Returns ``requested``, or for "auto" the fastest installed engine.

    The trial for "auto" runs once per model and machine; its result is cached.
    """
    if requested != "auto":
        return requested
    engines = table.engines_for(settings.device, settings.precision)
    installed = [name for name in engines if table.is_installed(name)]
    if len(installed) < 2:
        return (installed or engines)[0]
    return fastest(spec, installed, settings, lambda name: seconds_of(name, spec, settings))


def fastest(spec: ModelSpec, engines: Sequence[str], settings: EngineSettings, measure: Callable[[str], float]) -> str:
    """Returns the engine with the lowest ``measure``, from the cache if this machine has measured the model before."""
    cpu = platform.processor() or platform.machine()
    packages = sorted(table.ENGINES[name].package or "torch" for name in engines)
    parts = [sha256(spec.folder, spec.weight_files), *map(version, packages)]
    parts += [settings.precision, str(settings.threads), cpu]
    cached = cache_folder("engines") / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.txt"
    if not cached.exists():
        seconds = {name: measure(name) for name in engines}
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
        partial.write_text(min(seconds, key=lambda name: seconds[name]))
        try:
            os.link(partial, cached)  # the first process to measure decides for all
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return cached.read_text()


@torch.inference_mode()
def seconds_of(name: str, spec: ModelSpec, settings: EngineSettings) -> float:
    """Measures an engine on random tokens: the least seconds of several runs, or infinity if it cannot load the model."""
    try:
        engine = table.load(name, spec, settings)
    except ModelError:
        return math.inf
    lengths = np.concatenate([np.full(TRIAL_TOKENS // n, min(n, spec.max_seq_length)) for n in TRIAL_LENGTHS])
    ids = np.random.default_rng(0).integers(0, engine.vocabulary, int(lengths.sum())).astype(np.int32)
    count = len(lengths)
    tokens = Tokens(ids, lengths.astype(np.int32), np.arange(count, dtype=np.int32), np.zeros(count, np.int32))
    batches = list(engine.pack(tokens, engine.default_token_budget()))
    seconds = []
    for _ in range(TRIAL_RUNS):
        started = time.perf_counter()
        for _ in in_streams(engine.pooled, batches, engine.streams):
            pass
        seconds.append(time.perf_counter() - started)
    return min(seconds)
