"""Dense vectors in a report: their lengths, their spread over the dimensions, and the similarity of random rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from kosbert_ray.analysis.health import Health, health
from kosbert_ray.outputs.report import reference
from kosbert_ray.outputs.report.charts import LEAST_SPREAD, Figure, chart, histogram, middle
from kosbert_ray.outputs.report.kinds.base import Column, Float32, KindFigures, ReportedKind, unchanged
from kosbert_ray.outputs.report.words import Words
from kosbert_ray.vectors.kinds import DENSE
from kosbert_ray.vectors.similarity import PAIRS


@dataclass(frozen=True)
class DenseFigures(KindFigures):
    """See ``KindFigures``.

    Attributes:
        health: figures on the vectors.
    """

    health: Health

    @staticmethod
    def of(vectors: Float32, column: Column) -> DenseFigures:
        """Measures float32 ``[n, dimension]``."""
        del column
        return DenseFigures(health(vectors))

    def summary(self, say: Words) -> Iterator[tuple[str, str]]:
        """See ``KindFigures``."""
        found = self.health
        yield (
            "Anisotropy",
            say(
                "{found:.3f}, the mean cosine of two rows picked at random ({reference}: {usual:.3f})",
                found=found.anisotropy,
                reference=say(reference.NAME),
                usual=reference.ANISOTROPY,
            ),
        )
        yield (
            "Dimensions",
            say(
                "{found:.1f} effective of {all}; {constant} constant ({reference}: {usual:.1f} of {usual_all})",
                found=found.effective_dimensions,
                all=len(found.deviations),
                constant=found.constant,
                reference=say(reference.NAME),
                usual=reference.EFFECTIVE_DIMENSIONS,
                usual_all=reference.DIMENSION,
            ),
        )

    def figures(self, say: Words) -> Iterator[Figure]:
        """See ``KindFigures``."""
        found = self.health
        if np.ptp(found.norms) > LEAST_SPREAD * found.norms.max():  # else the model normalizes
            about = f"{say('Lengths of the sampled vectors.')} {middle(found.norms, '.3g', say, reference.NORMS)}"
            yield Figure("Norms", about, histogram(found.norms, "length", "vectors", say))
        median = float(np.median(found.deviations))
        if median > 0:
            compared = say(
                "The largest is {ratio:.2f} times the median ({reference}: {usual:.2f}).",
                ratio=float(found.deviations[0]) / median,
                reference=say(reference.NAME),
                usual=reference.SPREAD,
            )
            about = f"{say('Standard deviation of each dimension, largest first.')} {compared}"
            yield Figure("Spread", about, self._spread(say))
        about = f"{say('Cosines of pairs picked at random.')} {middle(found.cosines, '.3f', say, reference.COSINES)}"
        yield Figure("Similarity", about, histogram(found.cosines, "cosine", "pairs", say))

    def _spread(self, say: Words) -> go.Figure:
        line = go.Scatter(y=self.health.deviations, mode="lines")
        return chart([line], say("dimension"), say("standard deviation"))


REPORTED = ReportedKind(
    name="dense vectors",
    placed="",
    compared="",
    keep=unchanged,
    points=unchanged,
    cosines=PAIRS[DENSE],
    measured=DenseFigures.of,
)
