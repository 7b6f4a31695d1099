"""Sparse vectors: of a vocabulary's tens of thousands of numbers, only those above 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import scipy.sparse

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class SparseRows:
    """Collects the sparse vectors of a slice, batch by batch, in any order.

    Args:
        texts: number of distinct texts.
    """

    def __init__(self, texts: int) -> None:
        self._places = np.full(texts, -1, np.int64)
        self._parts: list[SparseVectors] = []
        self._total = 0

    def put(self, texts: Int64, found: SparseVectors) -> npt.NDArray[np.bool_]:
        """Stores the vectors of some texts; returns which of them are finite, the others are left out."""
        good = found.finite
        self._places[texts[good]] = np.flatnonzero(good) + self._total
        self._parts.append(found)
        self._total += len(found)
        return good

    def result(self) -> SparseVectors:
        """Returns the vector of each text; an empty one for a text without."""
        return SparseVectors.join(self._parts).take(self._places)


@dataclass(frozen=True)
class SparseVectors:
    """Sparse vectors of ``n`` texts, one behind the other.

    Attributes:
        offsets: int64 ``[n + 1]``, the start of each vector, and the end of the last.
        indices: int32 ``[total]``, ascending within a vector.
        values: float32 ``[total]``, above 0.
        finite: bool ``[n]``, false for a vector that has NaN or Inf.
    """

    offsets: Int64
    indices: Int32
    values: npt.NDArray[np.float32]
    finite: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def of_rows(rows: npt.NDArray[np.float32]) -> SparseVectors:
        """Returns the numbers above 0 of float32 ``[n, dimension]``."""
        at, indices = np.nonzero(rows > 0)
        offsets = np.concatenate(([0], np.cumsum(np.bincount(at, minlength=len(rows)))))
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=1))
        return SparseVectors(offsets, indices.astype(np.int32), rows[at, indices], finite)

    @staticmethod
    def join(parts: Sequence[SparseVectors]) -> SparseVectors:
        """Returns all vectors of some parts, in order."""
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return SparseVectors(
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part.finite for part in parts)]),
        )

    def take(self, rows: npt.NDArray[np.integer]) -> SparseVectors:
        """Returns the vectors of these rows; an index of -1 is an empty vector."""
        counts = np.append(np.diff(self.offsets), 0)[rows]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        starts = np.repeat(np.append(self.offsets[:-1], 0)[rows] - offsets[:-1], counts)
        places = starts + np.arange(int(offsets[-1]))
        return SparseVectors(offsets, self.indices[places], self.values[places], np.append(self.finite, True)[rows])

    def strongest(self, most: int | None, least: float = 0.0) -> SparseVectors:
        """Returns the vectors with their largest values only.

        Args:
            most: how many values a vector keeps; of equal ones those with the smaller index. None for all.
            least: the smallest value that is kept.
        """
        keep = self.values >= least
        vectors = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        if most is not None:
            order = np.lexsort((self.indices, -self.values, vectors))
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
            keep &= rank < most
        counts = np.bincount(vectors[keep], minlength=len(self))
        return SparseVectors(np.concatenate(([0], np.cumsum(counts))), self.indices[keep], self.values[keep], self.finite)

    def to_csr(self, dimension: int) -> scipy.sparse.csr_matrix:
        """Returns a SciPy matrix ``[n, dimension]``."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.indices, self.offsets), shape=(len(self), dimension))
