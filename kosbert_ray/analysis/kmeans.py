"""Spherical k-means for vectors that do not fit in memory: scikit-learn's mini-batch k-means with unit-length centres."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.arithmetic import unit

Vectors = npt.NDArray[np.float32]
INITIAL_ROWS = 50  # vectors per cluster in the sample that the initial centres are chosen from


def fit(blocks: Callable[[int], Iterable[Vectors]], clusters: int, passes: int, seed: int) -> Vectors:
    """Computes cluster centres by cosine similarity: float32 ``[clusters, d]``, rows of length 1.

    k-means++ chooses the initial centres from a sample. Each block then updates the centres nearest to its vectors.

    Args:
        blocks: returns all vectors in blocks, given the number of the pass; pass 0 takes the sample.
        clusters: number of clusters, reduced to the number of distinct sampled vectors if there are fewer.
        passes: number of passes over all vectors.
        seed: seed of the sample and of k-means++.

    Source: Dhillon and Modha 2001 (spherical k-means); Sculley 2010 (mini-batches).
    """
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    sample = _sample(blocks(0), max(clusters * INITIAL_ROWS, 10_000), seed)
    clusters = min(clusters, len(np.unique(sample, axis=0)))
    first, _ = kmeans_plusplus(sample, clusters, random_state=seed)
    model = MiniBatchKMeans(clusters, init=first, n_init=1, random_state=seed, reassignment_ratio=0.0)
    for number in range(1, passes + 1):
        for block in blocks(number):
            if len(block):
                model.partial_fit(unit(block))
                model.cluster_centers_ = unit(model.cluster_centers_)
    return np.asarray(model.cluster_centers_, np.float32)


def _sample(blocks: Iterable[Vectors], size: int, seed: int) -> Vectors:
    """Draws a uniform sample of ``size`` vectors (reservoir sampling by random keys)."""
    random = np.random.default_rng(seed)
    kept: Vectors | None = None
    keys = np.empty(0)
    for block in blocks:
        keys = np.concatenate([keys, random.random(len(block))])
        kept = unit(block) if kept is None else np.concatenate([kept, unit(block)])
        if len(keys) > size:
            best = np.sort(np.argpartition(keys, size)[:size])
            keys, kept = keys[best], kept[best]
    return np.zeros((0, 1), np.float32) if kept is None else kept


def assign(vectors: Vectors, centres: Vectors) -> tuple[npt.NDArray[np.int32], Vectors]:
    """Assigns each vector to its nearest centre.

    Returns:
        Index of the centre, int32 ``[n]``, and distance to it (1 minus the cosine), float32 ``[n]``.
    """
    similarities = unit(vectors) @ centres.T
    labels = similarities.argmax(1)
    return labels.astype(np.int32), np.asarray(1 - similarities[np.arange(len(labels)), labels], np.float32)
