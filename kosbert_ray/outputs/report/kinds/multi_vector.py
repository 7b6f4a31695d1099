"""Token vectors in a report: vectors per row, and the similarity of the rows' mean vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.outputs.report.charts import Figure, log_histogram, middle
from kosbert_ray.outputs.report.kinds.base import Column, Float32, RaggedFigures, ReportedKind, pairs_of
from kosbert_ray.outputs.report.words import Words
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import DENSE
from kosbert_ray.vectors.similarity import COSINES, PAIRS
from kosbert_ray.vectors.token_vectors import TokenVectors


@dataclass(frozen=True)
class TokenMeans:
    """The part that is kept of the token vectors of ``n`` rows, which may be gigabytes.

    Attributes:
        counts: vectors of each row, int64 ``[n]``.
        means: mean of each row's token vectors scaled to length 1, float32 ``[n, dimension]``; 0 for a row without any.
    """

    counts: npt.NDArray[np.int64]
    means: Float32

    @staticmethod
    def of(vectors: TokenVectors) -> TokenMeans:
        """Reduces token vectors, row by row, so that only a row's vectors are copied to float32."""
        means = np.zeros((len(vectors), vectors.dimension), np.float32)
        for row, tokens in enumerate(vectors.to_list()):
            if len(tokens):
                means[row] = unit(tokens.astype(np.float32)).mean(axis=0)
        return TokenMeans(vectors.counts, means)

    def __len__(self) -> int:
        return len(self.counts)

    def joined(self, others: Sequence[TokenMeans]) -> TokenMeans:
        """Returns these rows and then those of ``others``."""
        parts = [self, *others]
        return TokenMeans(np.concatenate([part.counts for part in parts]), np.concatenate([part.means for part in parts]))


@dataclass(frozen=True)
class TokenFigures(RaggedFigures):
    """See ``RaggedFigures``; cosines are those of mean vectors.

    Attributes:
        dimension: length of a vector.
    """

    EMPTY = (
        "Rows without token vectors: {empty:,} of {rows:,} sampled. A search by token vectors cannot find them; "
        "check the model's skiplist."
    )

    dimension: int

    @staticmethod
    def of(kept: TokenMeans, column: Column) -> TokenFigures:
        """Measures what was kept."""
        first, second = pairs_of(kept.counts > 0)
        cosines = COSINES[DENSE](kept.means[first], kept.means[second])
        return TokenFigures(kept.counts, cosines, column.row_bytes(), column.format.dimension)

    def summary(self, say: Words) -> Iterator[tuple[str, str]]:
        """See ``KindFigures``."""
        median, high = np.quantile(self.counts, [0.5, 0.95]).tolist()
        yield (
            "Vectors per row",
            say(
                "median {median:,.0f}, 95th percentile {high:,.0f}; each of {dimension:,} numbers",
                median=median,
                high=high,
                dimension=self.dimension,
            ),
        )
        yield from self.ends(say, "{found:.3f}, the mean cosine of two rows' mean vectors")

    def figures(self, say: Words) -> Iterator[Figure]:
        """See ``KindFigures``."""
        if np.ptp(self.counts):
            low = max(1, int(self.counts.min()))
            about = f"{say('Token vectors of the sampled rows.')} {middle(self.counts, ',.0f', say)}"
            yield Figure("Vectors per row", about, log_histogram(self.counts, "vectors", "rows", say, low))
        yield from self.similarity(say, "Cosines of the mean token vectors of pairs picked at random.")


def _points(kept: TokenMeans) -> Float32:
    return kept.means


def _cosines(kept: TokenMeans) -> Float32:
    return PAIRS[DENSE](kept.means)


REPORTED = ReportedKind(
    name="token vectors",
    placed="Each row is placed by the mean of its token vectors.",
    compared="Cosines are those of the rows' mean token vectors, not MaxSim.",
    keep=TokenMeans.of,
    points=_points,
    cosines=_cosines,
    measured=TokenFigures.of,
)
