"""Spherical k-means over more vectors than fit in memory: scikit-learn's mini-batches, with centres kept at length 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kosbert_ray.vector_math import unit

Vectors = npt.NDArray[np.float32]
INITIAL_ROWS = 50  # vectors a cluster that its first centres are drawn from


def fit(blocks: Callable[[int], Iterable[Vectors]], clusters: int, passes: int, seed: int) -> Vectors:
    """Centres of ``clusters`` clusters by cosine: float32 ``[clusters, d]``, of length 1.

    The first centres are k-means++'s on a sample; then every block moves the centres nearest to its vectors, ``passes``
    times over all.

    Args:
        blocks: gives all vectors, block by block, anew for each pass, whose number it is told; pass 0 is the sample's.
        clusters: how many; where there are fewer vectors, as many as these.
        passes: over all vectors.
        seed: of the sample and of k-means++.

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
    """``size`` of all vectors, each as likely as any other (reservoir sampling by random keys)."""
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
    """The nearest centre of each vector, and the distance to it: 1 minus the cosine.

    Returns:
        int32 ``[n]`` and float32 ``[n]``.
    """
    likeness = unit(vectors) @ centres.T
    labels = likeness.argmax(1)
    return labels.astype(np.int32), np.asarray(1 - likeness[np.arange(len(labels)), labels], np.float32)
