"""Vectors of which each text has a different amount: a text's numbers follow those of the text before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


class Ragged(ABC):
    """The vectors of ``n`` texts.

    Attributes:
        offsets: int64 ``[n + 1]``, where each text starts in the columns, and where the last one ends.
        finite: bool ``[n]``, false for a text that has NaN or Inf.
    """

    offsets: Int64
    finite: npt.NDArray[np.bool_]

    @abstractmethod
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Returns the arrays that ``offsets`` divides, each of the same length."""

    @abstractmethod
    def with_columns(self, offsets: Int64, columns: Sequence[npt.NDArray[Any]], finite: npt.NDArray[np.bool_]) -> Self:
        """Returns vectors of the same kind with other columns, as :meth:`columns` returns them."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int64:
        """Number of entries of each text, int64 ``[n]``."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return sum(column.nbytes for column in self.columns())

    def joined(self, others: Sequence[Self]) -> Self:
        """Returns these vectors and then those of ``others``."""
        parts = [self, *others]
        starts = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        columns = zip(*(part.columns() for part in parts), strict=True)
        return self.with_columns(
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            [np.concatenate(column) for column in columns],
            np.concatenate([part.finite for part in parts]),
        )

    def take(self, rows: npt.NDArray[np.integer]) -> Self:
        """Returns the vectors of these texts; the index -1 is a text without any."""
        counts = np.append(self.counts, 0)[rows]
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        starts = np.repeat(np.append(self.offsets[:-1], 0)[rows] - offsets[:-1], counts)
        places = starts + np.arange(int(offsets[-1]))
        return self.with_columns(offsets, [column[places] for column in self.columns()], np.append(self.finite, True)[rows])
