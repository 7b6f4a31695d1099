"""Near-duplicates: groups of vectors linked by pairs above a similarity threshold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 2048  # rows and columns of the similarity matrix that are computed at a time


def communities(vectors: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int32]:
    """Finds the connected components of the graph that links vectors with a cosine of at least ``threshold``.

    Compares all pairs in blocks. The result is exact; the time is quadratic.

    Args:
        vectors: float32 ``[n, d]``, rows of length 1.
        threshold: lowest cosine of a linked pair.

    Returns:
        The group of each vector, int32 ``[n]``: numbered from 0, largest first; -1 for vectors without a group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(vectors), BLOCK):
        for other in range(start, len(vectors), BLOCK):
            left, right = np.nonzero(vectors[start : start + BLOCK] @ vectors[other : other + BLOCK].T >= threshold)
            distinct = left + start < right + other
            lefts.append(left[distinct] + start)
            rights.append(right[distinct] + other)
    pairs = np.concatenate(lefts), np.concatenate(rights)
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(vectors), len(vectors)))
    count, groups = connected_components(graph, directed=False)
    sizes = np.bincount(groups, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    numbers = np.empty(count, np.int32)
    numbers[order] = np.arange(count, dtype=np.int32)
    numbers[sizes < 2] = -1
    return np.asarray(numbers[groups], np.int32)
