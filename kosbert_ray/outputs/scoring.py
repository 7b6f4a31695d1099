"""Scores of every row of a shard for some queries: one class for each kind of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import read_blocks, read_vectors
from kosbert_ray.storage import Storage
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.similarity import maxsim
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    import scipy.sparse

Similarity = Literal["cosine", "dot"]
Scores = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Scorer(Protocol):
    """Compares queries with the rows of shards."""

    @property
    def queries(self) -> int:
        """Number of queries."""
        ...

    def scores(self, storage: Storage, name: str) -> Iterator[tuple[Scores, Int64]]:
        """Yields the scores of a shard's rows, block by block; rows without a vector are skipped.

        Args:
            storage: the output directory.
            name: the shard.

        Yields:
            float32 ``[queries, m]``, and the row numbers, int64 ``[m]``.

        Raises:
            StorageError: the shard cannot be read.
        """
        ...


class DenseScorer:
    """The cosine or the dot product of dense vectors; quantized ones are decoded. The cosine with a zero vector is 0.

    Args:
        vector_format: how the rows' vectors are stored.
        vectors: of the queries, float32 ``[q, d]``.
        similarity: "cosine" or "dot".
    """

    def __init__(self, vector_format: EmbeddingFormat, vectors: Scores, similarity: Similarity = "cosine") -> None:
        self._format, self._similarity = vector_format, similarity
        self._vectors = unit(vectors) if similarity == "cosine" else vectors

    @property
    def queries(self) -> int:
        """Number of queries."""
        return len(self._vectors)

    def scores(self, storage: Storage, name: str) -> Iterator[tuple[Scores, Int64]]:
        """See :class:`Scorer`."""
        for vectors, rows in read_vectors(storage, name, self._format):
            scores = self._vectors @ vectors.T
            if self._similarity == "cosine":
                lengths = np.linalg.norm(vectors, axis=1)
                scores /= np.where(lengths == 0, 1, lengths)
            yield scores, rows


class SparseScorer:
    """The dot product of sparse vectors.

    Args:
        vector_format: how the rows' vectors are stored.
        vectors: of the queries, float32 ``[q, d]``.
    """

    def __init__(self, vector_format: VectorFormat, vectors: scipy.sparse.csr_matrix) -> None:
        self._format = vector_format
        self._vectors = np.ascontiguousarray(vectors.toarray().T, np.float32)

    @property
    def queries(self) -> int:
        """Number of queries."""
        return int(self._vectors.shape[1])

    def scores(self, storage: Storage, name: str) -> Iterator[tuple[Scores, Int64]]:
        """See :class:`Scorer`."""
        for vectors, rows in read_blocks(storage, name, self._format):
            yield np.ascontiguousarray((vectors.to_csr(self._format.dimension) @ self._vectors).T), rows


class MaxSimScorer:
    """The sum over a query's tokens of the largest dot product with a token of the row.

    Source: Khattab and Zaharia 2020, "ColBERT" (arXiv:2004.12832).

    Args:
        vector_format: how the rows' vectors are stored.
        vectors: of each query, ``[tokens, d]``.
        empty: the score of a row without token vectors.
    """

    def __init__(self, vector_format: VectorFormat, vectors: Sequence[npt.NDArray[Any]], empty: float = 0.0) -> None:
        self.format, self._empty = vector_format, empty
        self._vectors = [one.astype(np.float32, copy=False) for one in vectors]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return len(self._vectors)

    def scores(self, storage: Storage, name: str) -> Iterator[tuple[Scores, Int64]]:
        """See :class:`Scorer`."""
        for vectors, rows in read_blocks(storage, name, self.format):
            scores = maxsim(self._vectors, vectors)
            scores[:, vectors.counts == 0] = self._empty
            yield scores, rows

    def pairs(self, queries: Int64, rows: TokenVectors, numbers: Int64) -> Scores:
        """Returns the score of each pair of a query and a row, which their numbers give: float32 ``[pairs]``."""
        scores = np.empty(len(queries), np.float32)
        order = np.argsort(numbers, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):  # the queries of one row
            row = rows.take(numbers[chosen[:1]])
            found = maxsim([self._vectors[query] for query in queries[chosen]], row)[:, 0]
            scores[chosen] = found if len(row.values) else self._empty
        return scores
