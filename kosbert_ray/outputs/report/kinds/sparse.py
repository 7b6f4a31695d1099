"""Sparse vectors in a report: values per row, empty vectors, and the dimensions that carry the most weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.projection import reduce_sparse
from kosbert_ray.model.vector_heads import AutoEncoder
from kosbert_ray.outputs.report.charts import Figure, Table, count_histogram, middle
from kosbert_ray.outputs.report.kinds.base import Column, Float32, RaggedFigures, ReportedKind, pairs_of, unchanged
from kosbert_ray.outputs.report.words import Words
from kosbert_ray.vectors.kinds import SPARSE
from kosbert_ray.vectors.similarity import COSINES, PAIRS
from kosbert_ray.vectors.sparse import SparseVectors

HEAVIEST = 20  # dimensions in the table
PAIR_VALUES = 2**22  # of the pairs that are compared at once

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Weight:
    """A dimension.

    Attributes:
        name: its token or, if it has none, its number.
        share: of the rows, those with a value above 0.
        value: mean of the values above 0.
    """

    name: str
    share: float
    value: float


@dataclass(frozen=True)
class SparseFigures(RaggedFigures):
    """See ``RaggedFigures``; entries are values above 0.

    Attributes:
        dimension: number of dimensions.
        used: how many dimensions are above 0 in a sampled row.
        heaviest: the dimensions with the largest sums of values, the largest first.
        named: whether dimensions have the names of tokens.
    """

    EMPTY = (
        "Empty sparse vectors: {empty:,} of {rows:,} sampled rows. A search by sparse vectors cannot find them; "
        "check output.sparse_threshold and the model."
    )

    dimension: int
    used: int
    heaviest: tuple[Weight, ...]
    named: bool

    @staticmethod
    def of(vectors: SparseVectors, column: Column) -> SparseFigures:
        """Measures sparse vectors."""
        rows, sums = np.bincount(vectors.indices), np.bincount(vectors.indices, vectors.values)
        best = np.argsort(-sums, kind="stable")[: min(HEAVIEST, np.count_nonzero(rows))]
        names = _names(best.tolist(), column)
        weights = zip(names or map(str, best.tolist()), rows[best].tolist(), sums[best].tolist(), strict=True)
        first, second = pairs_of(vectors.counts > 0)
        return SparseFigures(
            counts=vectors.counts,
            dimension=column.format.dimension,
            used=int(np.count_nonzero(rows)),
            heaviest=tuple(Weight(name, count / len(vectors), total / count) for name, count, total in weights),
            named=names is not None,
            cosines=_cosines(vectors, first, second),
            row_bytes=column.row_bytes(),
        )

    def summary(self, say: Words) -> Iterator[tuple[str, str]]:
        """See ``KindFigures``."""
        median, high = np.quantile(self.counts, [0.5, 0.95]).tolist()
        yield (
            "Values per row",
            say(
                "median {median:,.0f}, 95th percentile {high:,.0f}; {empty:,} of {rows:,} sampled vectors empty",
                median=median,
                high=high,
                empty=self.empty,
                rows=len(self.counts),
            ),
        )
        yield "Dimensions", say("{used:,} of {all:,} used in the sampled rows", used=self.used, all=self.dimension)
        yield from self.ends(say, "{found:.3f}, the mean cosine of two rows picked at random")

    def figures(self, say: Words) -> Iterator[Figure]:
        """See ``KindFigures``."""
        if np.ptp(self.counts):  # else each row has as many: sparse_top_k, or an autoencoder
            about = f"{say('Values above 0 in the vectors of the sampled rows.')} {middle(self.counts, ',.0f', say)}"
            yield Figure("Values per row", about, count_histogram(self.counts, "values above 0", "rows", say))
        yield from self.similarity(say, "Cosines of pairs picked at random.")

    def tables(self, say: Words) -> Iterator[Table]:
        """See ``KindFigures``."""
        if self.heaviest:
            yield Table(
                "Heaviest dimensions",
                say("Those with the largest sums of values in the sampled rows."),
                (say("token" if self.named else "dimension"), say("share of the rows"), say("mean value above 0")),
                tuple((one.name, f"{one.share:.1%}", f"{one.value:.3f}") for one in self.heaviest),
            )


def _cosines(vectors: SparseVectors, first: Rows, second: Rows) -> Float32:
    """Cosines of pairs of rows, some at a time: a vector may have as many values as the vocabulary."""
    step = max(1, PAIR_VALUES * len(vectors) // max(1, len(vectors.values)))
    starts = range(0, len(first), step)
    parts = [COSINES[SPARSE](*(vectors.take(side[start : start + step]) for side in (first, second))) for start in starts]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _names(dimensions: list[int], column: Column) -> list[str] | None:
    """Returns the tokens of dimensions; None if they are no tokens, or if the model cannot be loaded."""
    if column.model is None:
        return None
    spec, tokenizer = column.model
    if isinstance(spec.sparse, AutoEncoder):
        return None
    return tokenizer.readable(dimensions)


REPORTED = ReportedKind(
    name="sparse vectors",
    placed="Rows are placed by the main directions of their sparse vectors (truncated SVD).",
    compared="Cosines are those of the sparse vectors.",
    keep=unchanged,
    points=reduce_sparse,
    cosines=PAIRS[SPARSE],
    measured=SparseFigures.of,
)
