"""Collects the vectors of a slice's texts from its batches, which come in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.kinds import DENSE, Kind
from kosbert_ray.vectors.ragged import Ragged

Int64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Rows(Protocol):
    """Collects one kind of vectors, or several."""

    def finite(self, texts: Int64, found: Any) -> Flags:
        """Returns for which texts of a batch the vectors have neither NaN nor Inf.

        Args:
            texts: the indices of its texts, int64 ``[k]``.
            found: their vectors.
        """
        ...

    def put(self, texts: Int64, found: Any, good: Flags) -> None:
        """Stores those vectors of a batch, for the texts with these indices, for which ``good`` is true."""
        ...


class DenseRows:
    """Collects dense vectors.

    Attributes:
        vectors: float32 ``[texts, dimension]``, zeros for a text without a vector.
    """

    def __init__(self, texts: int, dimension: int) -> None:
        self.vectors = np.zeros((texts, dimension), np.float32)

    def finite(self, texts: Int64, found: npt.NDArray[np.float32]) -> Flags:
        """See :class:`Rows`; ``found`` is float32 ``[texts, dimension]``."""
        del texts
        good: Flags = np.asarray(np.isfinite(found).all(axis=1))
        return good

    def put(self, texts: Int64, found: npt.NDArray[np.float32], good: Flags) -> None:
        """See :class:`Rows`."""
        self.vectors[texts[good]] = found[good]


class RaggedRows:
    """Collects vectors of which each text has a different amount.

    Args:
        texts: number of distinct texts.
        nothing: the vectors of no texts.
    """

    def __init__(self, texts: int, nothing: Ragged) -> None:
        self._places = np.full(texts, -1, np.int64)
        self._nothing = nothing
        self._parts: list[Ragged] = []
        self._total = 0

    def finite(self, texts: Int64, found: Ragged) -> Flags:
        """See :class:`Rows`."""
        del texts
        return found.finite

    def put(self, texts: Int64, found: Ragged, good: Flags) -> None:
        """See :class:`Rows`."""
        self._places[texts[good]] = np.flatnonzero(good) + self._total
        self._parts.append(found)
        self._total += len(found)

    def result(self) -> Ragged:
        """Returns the vectors of each text; none for a text that was left out."""
        return self._nothing.joined(self._parts).take(self._places)


class KindRows:
    """Collects several kinds of vectors; a text is stored if it is finite in all of them.

    Args:
        texts: number of distinct texts.
        dense: collects dense vectors; None if there are none.
        nothing: of each other kind the vectors of no texts.

    Attributes:
        dense: what collects the dense vectors, if there are any.
    """

    def __init__(self, texts: int, dense: DenseRows | None, nothing: Mapping[Kind, Ragged]) -> None:
        self.dense = dense
        self._ragged = {kind: RaggedRows(texts, each) for kind, each in nothing.items()}
        self._rows: dict[Kind, Rows] = {**({DENSE: dense} if dense else {}), **self._ragged}

    def finite(self, texts: Int64, found: Mapping[Kind, Any]) -> Flags:
        """See :class:`Rows`."""
        return cast(Flags, np.logical_and.reduce([rows.finite(texts, found[kind]) for kind, rows in self._rows.items()]))

    def put(self, texts: Int64, found: Mapping[Kind, Any], good: Flags) -> None:
        """See :class:`Rows`."""
        for kind, rows in self._rows.items():
            rows.put(texts, found[kind], good)

    def ragged(self) -> dict[Kind, Ragged]:
        """Returns the vectors of the kinds that are not dense."""
        return {kind: rows.result() for kind, rows in self._ragged.items()}
