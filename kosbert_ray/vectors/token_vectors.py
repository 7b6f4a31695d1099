"""Token vectors: one vector for each token of a text, as late-interaction models (ColBERT) compare them.

Source: Khattab and Zaharia 2020, "ColBERT" (arXiv:2004.12832).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.ragged import Int64, Ragged


@dataclass(frozen=True)
class TokenVectors(Ragged):
    """The token vectors of ``n`` texts.

    Attributes:
        offsets, finite: see :class:`~kosbert_ray.vectors.ragged.Ragged`.
        values: float16 or float32 ``[tokens, dimension]``.
    """

    offsets: Int64
    values: npt.NDArray[Any]
    finite: npt.NDArray[np.bool_]

    @staticmethod
    def empty(dimension: int, texts: int = 0) -> TokenVectors:
        """Returns ``texts`` texts without vectors."""
        return TokenVectors(np.zeros(texts + 1, np.int64), np.empty((0, dimension), np.float16), np.ones(texts, bool))

    @staticmethod
    def of_lengths(values: npt.NDArray[Any], lengths: npt.NDArray[np.integer]) -> TokenVectors:
        """Returns the vectors of texts that have ``lengths`` of the rows of ``values``, one text after another."""
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        finite = np.ones(len(lengths), bool)
        finite[np.searchsorted(offsets, bad, side="right") - 1] = False
        return TokenVectors(offsets, values, finite)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.values.shape[1])

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Returns the vectors."""
        return (self.values,)

    def with_columns(
        self, offsets: Int64, columns: Sequence[npt.NDArray[Any]], finite: npt.NDArray[np.bool_]
    ) -> TokenVectors:
        """See :class:`~kosbert_ray.vectors.ragged.Ragged`."""
        return TokenVectors(offsets, columns[0], finite)

    def to_list(self) -> list[npt.NDArray[Any]]:
        """Returns the vectors of each text, ``[tokens, dimension]``."""
        return np.split(self.values, self.offsets[1:-1]) if len(self) else []
