"""The eight figures of a model on STS data, for every output type and dimension, beside what is published of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.source import ModelSource
from kosbert_ray.encoder.spec import SpecOptions
from kosbert_ray.errors import QualityLost, UsageError
from kosbert_ray.evaluation.sts import MEASURES, SentencePairs, correlations
from kosbert_ray.shards.vector_types import CODECS, VectorType, ranges_of
from kosbert_ray.vector_math import truncate

Figures = dict[str, tuple[float, float]]

# (Pearson, Spearman) x 100 on the KorSTS test set, from the models' own pages.
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
    """Figures of one way to store a model's vectors."""

    data: str
    dtype: VectorType
    dimension: int
    bytes: int
    figures: Figures

    @property
    def spearman(self) -> float:
        """Spearman's correlation of the cosine, x 100: the one figure by which models are compared."""
        return self.figures["cosine"][1]


def evaluate(
    model: ModelSource,
    data: Sequence[SentencePairs],
    dtypes: Sequence[VectorType],
    dimensions: Sequence[int] = (),
    options: EncoderOptions = EncoderOptions(),
    spec_options: SpecOptions = SpecOptions(),
) -> list[Row]:
    """Encodes the sentences once and measures each way to store their vectors; the first row of a set is float32, whole.

    int8's ranges are those of the set's own vectors. Measures of ubinary are those of its bits as 0 and 1.

    Args:
        model: where it is.
        data: STS sets.
        dtypes: output types.
        dimensions: to truncate to, besides the model's own.
        options: how to compute.
        spec_options: what is asked of the model folder.

    Raises:
        ModelError: the model cannot be loaded, or a sentence not embedded.
        UsageError: a dimension is larger than the model's.
    """
    encoder = Encoder.load(model, options, spec_options)
    whole = encoder.spec.dimension
    for dimension in dimensions:
        if not 0 < dimension <= whole:
            raise UsageError(f"--dimension {dimension}: the model's vectors have {whole}")
    ways: list[tuple[VectorType, int]] = [("float32", whole)]
    ways += [(dtype, dimension) for dimension in (whole, *dimensions) for dtype in dtypes]
    rows = []
    for pairs in data:
        vectors = encoder.encode(pairs.first + pairs.second)
        for dtype, dimension in dict.fromkeys(ways):
            cut = truncate(vectors, dimension, encoder.spec.normalized)
            codec = CODECS[dtype]
            stored = codec.encode(cut, ranges_of(cut) if codec.needs_ranges else ())
            values = codec.unpack(stored, dimension)
            half = len(pairs.first)
            figures = correlations(values[:half], values[half:], pairs.scores)
            rows.append(Row(pairs.name, dtype, dimension, stored[0].nbytes, figures))
    return rows


def published(model: str, data: str) -> list[tuple[str, Figures]]:
    """What is published of a model on a data set: where, and the figures."""
    return PUBLISHED.get(model, []) if data == PUBLISHED_ON else []


def types_of(names: str) -> list[VectorType]:
    """Output types from their names with commas; raises UsageError for one that is none."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in CODECS:
            raise UsageError(f"--types: {name} is none of {', '.join(CODECS)}")
    return found


def require_small_drop(rows: Sequence[Row], most: float) -> None:
    """Raises QualityLost if a row's Spearman of the cosine is more than ``most`` below float32's of the same data."""
    base: dict[str, float] = {}
    for row in rows:  # the first row of a data set is float32, whole
        base.setdefault(row.data, row.spearman)
    worst = max(rows, key=lambda row: base[row.data] - row.spearman)
    drop = base[worst.data] - worst.spearman
    if drop > most:
        raise QualityLost(
            f"{worst.data}: {worst.dtype} of {worst.dimension} dimensions loses {drop:.2f} of cosine Spearman, more than "
            f"--max-drop {most:g}"
        )


def require_quality(rows: Sequence[Row], least: float) -> None:
    """Raises QualityLost if float32's Spearman of the cosine, x 100, is below ``least`` on any of the data."""
    worst = min((row for row in rows if row.dtype == "float32"), key=lambda row: row.spearman)
    if worst.spearman < least:
        raise QualityLost(f"{worst.data}: the cosine's Spearman is {worst.spearman:.2f}, less than --least {least:g}")


def table(rows: Sequence[Row], model: str) -> list[list[str]]:
    """The figures as cells, a header first; below each data set's rows what is published of the model on it."""
    header = ["data", "type", "dim", "bytes", *(f"{measure} {kind}" for measure in MEASURES for kind in ("P", "S"))]
    cells = [header]
    for data in dict.fromkeys(row.data for row in rows):
        for row in rows:
            if row.data == data:
                cells.append([data, row.dtype, str(row.dimension), str(row.bytes), *_cells(row.figures)])
        for where, figures in published(model, data):
            cells.append([data, f"({where})", "", "", *_cells(figures)])
    return cells


def _cells(figures: Figures) -> list[str]:
    return [f"{value:.2f}" for measure in MEASURES for value in figures.get(measure, ())] + [
        "" for measure in MEASURES if measure not in figures for _ in range(2)
    ]
