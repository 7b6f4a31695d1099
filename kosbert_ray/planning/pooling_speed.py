"""Measures how long token pooling takes on a core of this machine: it can be slower than the model."""

from __future__ import annotations

import time

import numpy as np

from kosbert_ray.model.vector_heads import TokenHead
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.token_pooling import TokenPooling
from kosbert_ray.vectors.token_vectors import TokenVectors

SECONDS = 0.3  # of the measurement
TEXTS = 4  # that are pooled at a time


def pooling_seconds(head: TokenHead, pooling: TokenPooling, tokens: float) -> float:
    """Returns the seconds that a core takes to pool the token vectors of a text.

    Args:
        head: the way to token vectors.
        pooling: how they are pooled.
        tokens: of the text.
    """
    length = max(1, round(tokens))
    values = unit(np.random.default_rng(0).standard_normal((TEXTS * length, head.dimension), dtype=np.float32))
    texts = TokenVectors.of_lengths(values.astype(np.float16), np.full(TEXTS, length))
    pooling(texts)  # imports SciPy
    started, done = time.perf_counter(), 0
    while not done or time.perf_counter() - started < SECONDS:
        pooling(texts)
        done += TEXTS
    return (time.perf_counter() - started) / done
