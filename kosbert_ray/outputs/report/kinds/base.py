"""Shared by the kinds of vectors in a report: what each measures, and how a page shows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.health import random_pairs
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.outputs.report.charts import Figure, Table, histogram, middle
from kosbert_ray.outputs.report.words import Words
from kosbert_ray.shards.formats.base import VectorFormat

Float32 = npt.NDArray[np.float32]


class KindFigures(ABC):
    """Figures on the sampled vectors of one kind."""

    def warnings(self, say: Words) -> Iterator[str]:
        """Yields what a reader should see first."""
        del say
        yield from ()

    @abstractmethod
    def summary(self, say: Words) -> Iterator[tuple[str, str]]:
        """Yields lines of the summary: name, in English, and value."""

    @abstractmethod
    def figures(self, say: Words) -> Iterator[Figure]:
        """Yields the figures."""

    def tables(self, say: Words) -> Iterator[Table]:
        """Yields the tables."""
        del say
        yield from ()


@dataclass(frozen=True)
class RaggedFigures(KindFigures):
    """Figures on vectors of which each row has a different amount.

    Attributes:
        counts: entries of each row, int64 ``[n]``.
        cosines: of random pairs of rows that are not empty, float32; none if there is no such pair.
        row_bytes: bytes of a row in the file.
    """

    EMPTY: ClassVar[str]
    """The warning about empty rows, with the fields ``empty`` and ``rows``."""

    counts: npt.NDArray[np.int64]
    cosines: Float32
    row_bytes: float

    @property
    def empty(self) -> int:
        """Number of rows without an entry."""
        return int((self.counts == 0).sum())

    def warnings(self, say: Words) -> Iterator[str]:
        """See ``KindFigures``."""
        if self.empty:
            yield say(self.EMPTY, empty=self.empty, rows=len(self.counts))

    def ends(self, say: Words, anisotropy: str) -> Iterator[tuple[str, str]]:
        """Yields the last lines of the summary.

        Args:
            say: the words of the page.
            anisotropy: the text about the mean cosine, with the field ``found``.
        """
        if len(self.cosines):
            yield "Anisotropy", say(anisotropy, found=float(self.cosines.mean()))
        yield "Size on disk", say("{size} a row", size=say.size(round(self.row_bytes)))

    def similarity(self, say: Words, about: str) -> Iterator[Figure]:
        """Yields the figure of the cosines, if there are any; ``about`` says what they are of."""
        if len(self.cosines):
            said = f"{say(about)} {middle(self.cosines, '.3f', say)}"
            yield Figure("Similarity", said, histogram(self.cosines, "cosine", "pairs", say))


@dataclass(frozen=True)
class Column:
    """A column of vectors, as far as the sampled vectors do not tell.

    Attributes:
        format: how it is stored.
        row_bytes: returns the bytes of a row in the file, as compressed; reads footers.
        model: the model's specification and its tokenizer; None if it cannot be loaded here.
    """

    format: VectorFormat
    row_bytes: Callable[[], float]
    model: tuple[ModelSpec, Tokenizer] | None


@dataclass(frozen=True)
class ReportedKind:
    """A kind of vectors in a report.

    Attributes:
        name: for headings of an output that has several kinds, in English.
        placed: a sentence about the way from the vectors to the map; empty if they are placed as they are.
        compared: a sentence about the cosines of pairs; empty if they are those of the vectors as they are.
        keep: reduces the vectors of sampled rows, in the form of the kind, to what the report needs. It is applied to a
            shard's rows before the next shard is read. The result is an array ``[n, ...]`` or has ``joined``, as
            ``Ragged``.
        points: float32 ``[n, d]`` of what was kept of ``n`` rows, for clusters and the map; 0 for rows without a vector.
        cosines: float32 ``[n, n]`` of what was kept.
        measured: figures on what was kept of at least two rows.
    """

    name: str
    placed: str
    compared: str
    keep: Callable[[Any], Any]
    points: Callable[[Any], Float32]
    cosines: Callable[[Any], Float32]
    measured: Callable[[Any, Column], KindFigures]


def unchanged(vectors: Any) -> Any:
    """Returns the vectors: for ``ReportedKind.keep`` of a kind that is small."""
    return vectors


def pairs_of(filled: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Picks random pairs of different rows that have a vector.

    Args:
        filled: bool ``[n]``, which rows have one.

    Returns:
        The first and the second row of each pair, int64 ``[m]``; none if fewer than two rows have a vector.
    """
    rows = np.flatnonzero(filled)
    if len(rows) < 2:
        return rows[:0], rows[:0]
    first, second = random_pairs(len(rows))
    return rows[first], rows[second]
