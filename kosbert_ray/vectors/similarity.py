"""Similarity of vectors, by kind: of the same rows in two sets, and of all pairs of rows in one set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind
from kosbert_ray.vectors.ragged import Int64
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    import scipy.sparse

Float32 = npt.NDArray[np.float32]

BLOCK_TOKENS = 1024  # of rows, and as many of queries, per matrix product: it stays in a core's cache
BLOCK_COLUMNS = 2048  # of sparse vectors that are multiplied as dense ones
SPARSE_PRODUCT = 20  # a product of SciPy's sparse matrices takes this many times a dense one's time


def maxsim(queries: Sequence[npt.NDArray[Any]], rows: TokenVectors) -> Float32:
    """Returns the sum over each query's tokens of the largest dot product with a token of each row.

    Source: Khattab and Zaharia 2020, "ColBERT" (arXiv:2004.12832).

    Args:
        queries: token vectors of each query, ``[tokens, d]``.
        rows: token vectors of ``m`` rows.

    Returns:
        float32 ``[queries, m]``; 0 for a query or a row without token vectors.
    """
    scores = np.zeros((len(queries), len(rows)), np.float32)
    lengths = np.array([len(query) for query in queries], np.int64)
    asked = np.flatnonzero(lengths)
    there = np.flatnonzero(rows.counts)  # rows without token vectors take no place, so the others follow each other
    starts = np.append(rows.offsets[there], rows.offsets[-1])
    for some in _blocks(np.concatenate(([0], np.cumsum(lengths[asked]))), BLOCK_TOKENS):
        own = asked[some]
        tokens = np.concatenate([queries[query] for query in own]).astype(np.float32, copy=False)
        ends = np.concatenate(([0], np.cumsum(lengths[own])))[:-1]
        for block in _blocks(starts, BLOCK_TOKENS):
            first, last = starts[block.start], starts[block.stop]
            products = rows.values[first:last].astype(np.float32, copy=False) @ tokens.T
            largest = np.maximum.reduceat(products, starts[block] - first, axis=0)
            scores[own[:, None], there[block]] = np.add.reduceat(largest, ends, axis=1).T
    return scores


def _blocks(offsets: Int64, size: int) -> list[slice]:
    """Splits items at ``offsets`` into runs of about ``size``, and of at least one item."""
    found, start, count = [], 0, len(offsets) - 1
    while start < count:
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1)
        found.append(slice(start, min(stop, count)))
        start = stop
    return found


def _dense_cosines(one: Float32, other: Float32) -> Float32:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.where(lengths == 0, 1, lengths), np.float32)


def _sparse_cosines(one: SparseVectors, other: SparseVectors) -> Float32:
    """Cosines of sparse vectors; 1 for two empty ones."""
    size = 1 + max(int(side.indices.max(initial=0)) for side in (one, other))
    first, second = one.to_csr(size), other.to_csr(size)
    products = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    squares = (np.asarray(side.multiply(side).sum(axis=1)).ravel() for side in (first, second))
    lengths = np.sqrt(np.prod([*squares], axis=0))
    empty = (one.counts == 0) & (other.counts == 0)
    return np.where(empty, 1, products / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _token_cosines(one: TokenVectors, other: TokenVectors) -> Float32:
    """The mean cosine of a text's token vectors; of pooled ones, which have no order, of the nearest. 1 for none."""
    found = []
    for first, second in zip(one.to_list(), other.to_list(), strict=True):
        sides = [unit(side.astype(np.float32)) for side in (first, second)]
        if not len(first) or not len(second):
            found.append(float(len(first) == len(second)))
            continue
        cosines = sides[0] @ sides[1].T
        found.append(float(min(cosines.max(0).mean(), cosines.max(1).mean())))
    return np.array(found, np.float32)


COSINES: dict[Kind, Callable[[Any, Any], Float32]] = {
    DENSE: _dense_cosines,
    SPARSE: _sparse_cosines,
    MULTI_VECTOR: _token_cosines,
}
"""Of two sets of vectors of the same ``n`` rows, the cosine of each row's two vectors: float32 ``[n]``."""


def _dense_pairs(vectors: Float32) -> Float32:
    directions: Float32 = unit(vectors)
    return directions @ directions.T


def sparse_directions(vectors: SparseVectors) -> scipy.sparse.csr_matrix:
    """Returns sparse vectors scaled to length 1, as a SciPy matrix of the dimensions in use (at least one)."""
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    used, columns = np.unique(vectors.indices, return_inverse=True)
    return normalize(csr_matrix((vectors.values, columns, vectors.offsets), shape=(len(vectors), max(1, len(used)))))


def _sparse_pairs(vectors: SparseVectors) -> Float32:
    directions = sparse_directions(vectors)
    count, width = directions.shape
    products = np.square(np.bincount(directions.indices, minlength=width), dtype=np.float64).sum()
    if SPARSE_PRODUCT * products < count**2 * width:
        return np.asarray((directions @ directions.T).toarray(), np.float32)
    found, by_column = np.zeros((count, count), np.float32), directions.tocsc()
    for start in range(0, width, BLOCK_COLUMNS):
        block = by_column[:, start : start + BLOCK_COLUMNS].toarray()
        found += block @ block.T
    return found


def _token_pairs(vectors: TokenVectors) -> Float32:
    directions = vectors.with_columns(vectors.offsets, [unit(vectors.values.astype(np.float32))], vectors.finite)
    sums = maxsim(directions.to_list(), directions)
    return (sums / np.maximum(vectors.counts, 1)[:, None]).astype(np.float32)


PAIRS: dict[Kind, Callable[[Any], Float32]] = {
    DENSE: _dense_pairs,
    SPARSE: _sparse_pairs,
    MULTI_VECTOR: _token_pairs,
}
"""The similarity of each row with each row, float32 ``[n, n]``: cosines; of token vectors, the mean over the tokens of the
first row of the largest cosine with a token of the second."""
