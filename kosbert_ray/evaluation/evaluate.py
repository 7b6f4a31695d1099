"""Scores of a model on STS data for each output type and dimension, next to its published scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import QualityLost, UsageError
from kosbert_ray.evaluation.sts import MEASURES, SentencePairs, correlations
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.source import ModelSource
from kosbert_ray.shards.vector_types import CODECS, VectorType, ranges_of
from kosbert_ray.vectors.arithmetic import truncate

Figures = dict[str, tuple[float, float]]

# (Pearson, Spearman) x 100 on the KorSTS test set, as published by the models' authors.
PUBLISHED: dict[str, list[tuple[str, Figures]]] = {
    "jhgan/ko-sbert-sts": [
        (
            "the model card",
            {
                "cosine": (80.79, 79.01),
                "euclidean": (78.03, 77.31),
                "manhattan": (78.08, 77.35),
                "dot": (75.96, 75.20),
            },
        ),
        ("the author's repository", {"cosine": (81.55, 81.23)}),
    ],
}
PUBLISHED_ON = "sts-test"


@dataclass(frozen=True)
class Row:
    """Scores of a model on one data set, with vectors stored in one type and dimension.

    Attributes:
        data: name of the data set.
        dtype: output type.
        dimension: number of dimensions kept.
        bytes: size of a stored vector.
        figures: (Pearson, Spearman) x 100 by similarity measure.
    """

    data: str
    dtype: VectorType
    dimension: int
    bytes: int
    figures: Figures

    @property
    def spearman(self) -> float:
        """Spearman correlation of the cosine, x 100: the score that models are compared by."""
        return self.figures["cosine"][1]


def evaluate(
    model: ModelSource,
    data: Sequence[SentencePairs],
    dtypes: Sequence[VectorType],
    dimensions: Sequence[int] = (),
    options: EncoderOptions = EncoderOptions(),
    spec_options: SpecOptions = SpecOptions(),
) -> list[Row]:
    """Encodes each data set once and scores its vectors in each output type and dimension.

    int8 ranges are computed from the data set's own vectors. ubinary vectors are compared as bits, 0 and 1.

    Args:
        model: source of the model.
        data: STS data sets.
        dtypes: output types to score.
        dimensions: dimensions to truncate to, in addition to the model's own.
        options: encoder options.
        spec_options: model options.

    Returns:
        Scores by data set. The first row of each is float32 at full dimension, the baseline.

    Raises:
        ModelError: the model cannot be loaded, or fails on a sentence.
        UsageError: a dimension is larger than the model's.
    """
    encoder = Encoder.load(model, options, spec_options)
    full = encoder.spec.dimension
    for dimension in dimensions:
        if not 0 < dimension <= full:
            raise UsageError(f"--dimension {dimension}: must be between 1 and the model's {full}")
    variants: list[tuple[VectorType, int]] = [("float32", full)]
    variants += [(dtype, dimension) for dimension in (full, *dimensions) for dtype in dtypes]
    rows = []
    for pairs in data:
        vectors = encoder.encode(pairs.first + pairs.second)
        for dtype, dimension in dict.fromkeys(variants):
            cut = truncate(vectors, dimension, encoder.spec.normalized)
            codec = CODECS[dtype]
            stored = codec.encode(cut, ranges_of(cut) if codec.needs_ranges else ())
            values = codec.unpack(stored, dimension)
            half = len(pairs.first)
            figures = correlations(values[:half], values[half:], pairs.scores)
            rows.append(Row(pairs.name, dtype, dimension, stored[0].nbytes, figures))
    return rows


def published(model: str, data: str) -> list[tuple[str, Figures]]:
    """Returns the published scores of a model on a data set, each with its source."""
    return PUBLISHED.get(model, []) if data == PUBLISHED_ON else []


def types_of(names: str) -> list[VectorType]:
    """Parses a comma-separated list of output types; raises UsageError for an unknown name."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in CODECS:
            raise UsageError(f"--types: {name} is not one of {', '.join(CODECS)}")
    return found


def require_small_drop(rows: Sequence[Row], max_drop: float) -> None:
    """Raises QualityLost if any row's cosine Spearman is more than ``max_drop`` below the data set's baseline."""
    baseline: dict[str, float] = {}
    for row in rows:  # the first row of a data set is the baseline
        baseline.setdefault(row.data, row.spearman)
    worst = max(rows, key=lambda row: baseline[row.data] - row.spearman)
    drop = baseline[worst.data] - worst.spearman
    if drop > max_drop:
        raise QualityLost(
            f"{worst.data}: {worst.dtype} with {worst.dimension} dimensions loses {drop:.2f} points of cosine Spearman, "
            f"more than --max-drop {max_drop:g}"
        )


def require_quality(rows: Sequence[Row], minimum: float) -> None:
    """Raises QualityLost if the cosine Spearman of any float32 row, x 100, is below ``minimum``."""
    worst = min((row for row in rows if row.dtype == "float32"), key=lambda row: row.spearman)
    if worst.spearman < minimum:
        raise QualityLost(f"{worst.data}: cosine Spearman is {worst.spearman:.2f}, below --least {minimum:g}")


def table(rows: Sequence[Row], model: str) -> list[list[str]]:
    """Returns the scores as table cells: a header, then each data set's rows followed by the published scores."""
    header = ["data", "type", "dim", "bytes", *(f"{measure} {kind}" for measure in MEASURES for kind in ("P", "S"))]
    cells = [header]
    for data in dict.fromkeys(row.data for row in rows):
        for row in rows:
            if row.data == data:
                cells.append([data, row.dtype, str(row.dimension), str(row.bytes), *_cells(row.figures)])
        for source, figures in published(model, data):
            cells.append([data, f"({source})", "", "", *_cells(figures)])
    return cells


def _cells(figures: Figures) -> list[str]:
    return [f"{value:.2f}" for measure in MEASURES for value in figures.get(measure, ())] + [
        "" for measure in MEASURES if measure not in figures for _ in range(2)
    ]
