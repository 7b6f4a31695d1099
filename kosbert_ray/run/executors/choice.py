"""Chooses the executor of a run by a pure rule: listing, options, size of the model, kind of device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.slice_size import text_bytes
from kosbert_ray.encoder.options import EncoderOptions, has_gpu, usable_cores, visible_gpus
from kosbert_ray.encoder.plain_speed import plain_bytes_per_second
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.units import duration

# A run that a plain machine finishes in this time spends more of it on starting Ray than it gains.
LITTLE_SECONDS = 30.0
# Of a static embedding model: to move its texts and vectors between processes costs half as much as to compute them, and
# this process tokenizes on several cores anyway.
STATIC_LITTLE_SECONDS = 120.0
FRAGMENT_SECONDS = 0.005  # of reading and writing a file of a few rows, which one process does one at a time
STATIC_CORES = 8  # with more, the part of the work that takes one core at a time decides


@dataclass(frozen=True)
class Choice:
    """An executor and why it was chosen.

    Attributes:
        name: the executor.
        reason: for the log; empty if there is nothing to say.
    """

    name: str
    reason: str = ""


def choose(config: JobConfig, spec: ModelSpec, fragments: Iterable[Fragment], crashed: bool, share: float = 1.0) -> Choice:
    """Chooses the executor for the open fragments.

    Args:
        config: the job.
        spec: its model.
        fragments: the fragments with open slices.
        crashed: whether an earlier run of this output was killed on the local executor.
        share: the part of these fragments that the run does.
    """
    if name := fixed(config):
        return Choice(name)
    seconds = share * plain_seconds(spec, config.encoder, fragments)
    if seconds > (STATIC_LITTLE_SECONDS if spec.static else LITTLE_SECONDS):
        return Choice("ray")
    if crashed:
        return Choice("ray", "an earlier run in one process was killed, so this one isolates its workers with Ray")
    return Choice("local", f"runs in this process, because there is little to do (about {duration(seconds)})")


def fixed(config: JobConfig) -> str | None:
    """The executor, if it does not depend on how much there is to do."""
    if config.executor != "auto":
        return config.executor
    return "ray" if _wants_ray(config) else None


def plain_seconds(spec: ModelSpec, options: EncoderOptions, fragments: Iterable[Fragment]) -> float:
    """Estimates the seconds that a plain machine with this machine's cores takes in one process."""
    sizes = [text_bytes(item.file) * item.input_bytes / max(1, item.file.size) for item in fragments]
    gpu = has_gpu(options)
    cores = min(usable_cores(), STATIC_CORES) if spec.static else usable_cores()
    encoding = sum(sizes) / plain_bytes_per_second(spec, gpu) / (1 if gpu else cores)
    return encoding + FRAGMENT_SECONDS * len(sizes)


def _wants_ray(config: JobConfig) -> bool:
    """True if the user names a cluster, several encoders, or a Ray of the calling process, or has several GPUs."""
    actors = config.encoder.actors
    several = isinstance(actors, tuple) or (actors or 1) > 1
    return bool(config.ray.address or os.environ.get("RAY_ADDRESS") or config.ray.runtime_env or several) or (
        _in_callers_ray() or (config.encoder.device != "cpu" and visible_gpus() > 1)
    )


def _in_callers_ray() -> bool:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    from kosbert_ray.run.executors.ray import session

    return not session.is_local()
