"""Sparse vectors: of a vocabulary's tens of thousands of numbers, only those above 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.ragged import Int64, Ragged

if TYPE_CHECKING:
    import scipy.sparse

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SparseVectors(Ragged):
    """Sparse vectors of ``n`` texts.

    Attributes:
        offsets, finite: see :class:`~kosbert_ray.vectors.ragged.Ragged`.
        indices: int32 ``[total]``, ascending within a vector.
        values: float32 ``[total]``, above 0.
    """

    offsets: Int64
    indices: Int32
    values: npt.NDArray[np.float32]
    finite: npt.NDArray[np.bool_]

    @staticmethod
    def empty(texts: int = 0) -> SparseVectors:
        """Returns ``texts`` vectors without values."""
        return SparseVectors(
            np.zeros(texts + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), np.ones(texts, bool)
        )

    @staticmethod
    def of_rows(rows: npt.NDArray[np.float32]) -> SparseVectors:
        """Returns the numbers above 0 of float32 ``[n, dimension]``."""
        at, indices = np.nonzero(rows > 0)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=1))
        return SparseVectors.of_coordinates(at, indices, rows[at, indices], finite)

    @staticmethod
    def of_coordinates(
        texts: npt.NDArray[np.integer],
        indices: npt.NDArray[np.integer],
        values: npt.NDArray[np.float32],
        finite: npt.NDArray[np.bool_],
    ) -> SparseVectors:
        """Returns the vectors whose numbers are given by text and index, in ascending order of both."""
        offsets = np.concatenate(([0], np.cumsum(np.bincount(texts, minlength=len(finite)))))
        return SparseVectors(offsets, indices.astype(np.int32), values, finite)

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Returns indices and values."""
        return self.indices, self.values

    def with_columns(
        self, offsets: Int64, columns: Sequence[npt.NDArray[Any]], finite: npt.NDArray[np.bool_]
    ) -> SparseVectors:
        """See :class:`~kosbert_ray.vectors.ragged.Ragged`."""
        indices, values = columns
        return SparseVectors(offsets, indices, values, finite)

    def strongest(self, most: int | None, least: float = 0.0) -> SparseVectors:
        """Returns the vectors with their largest values only.

        Args:
            most: how many values a vector keeps; of equal ones those with the smaller index. None for all.
            least: the smallest value that is kept.
        """
        if most is None and not least:
            return self
        keep = self.values >= least
        vectors = np.repeat(np.arange(len(self)), self.counts)
        if most is not None:
            order = np.lexsort((self.indices, -self.values, vectors))
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order)) - np.repeat(self.offsets[:-1], self.counts)
            keep &= rank < most
        if keep.all():
            return self
        counts = np.bincount(vectors[keep], minlength=len(self))
        offsets = np.concatenate(([0], np.cumsum(counts)))
        return replace(self, offsets=offsets, indices=self.indices[keep], values=self.values[keep])

    def to_csr(self, dimension: int) -> scipy.sparse.csr_matrix:
        """Returns a SciPy matrix ``[n, dimension]``."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.indices, self.offsets), shape=(len(self), dimension))
