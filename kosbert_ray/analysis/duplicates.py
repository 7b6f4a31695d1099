"""Near-duplicates: groups of vectors that a chain of pairs above a threshold connects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 2048


def communities(vectors: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int32]:
    """The group of each vector: two are in one if a chain of pairs with a cosine of ``threshold`` or more connects them.

    Compares all pairs, block by block: exact, and quadratic in time.

    Args:
        vectors: float32 ``[n, d]``, of length 1.
        threshold: a cosine.

    Returns:
        int32 ``[n]``: groups numbered from 0, the largest first; -1 for those that are alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(vectors), BLOCK):
        for other in range(start, len(vectors), BLOCK):
            left, right = np.nonzero(vectors[start : start + BLOCK] @ vectors[other : other + BLOCK].T >= threshold)
            apart = left + start < right + other
            lefts.append(left[apart] + start)
            rights.append(right[apart] + other)
    pairs = np.concatenate(lefts), np.concatenate(rights)
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(vectors), len(vectors)))
    count, groups = connected_components(graph, directed=False)
    sizes = np.bincount(groups, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    numbers = np.empty(count, np.int32)
    numbers[order] = np.arange(count, dtype=np.int32)
    numbers[sizes < 2] = -1
    return np.asarray(numbers[groups], np.int32)
