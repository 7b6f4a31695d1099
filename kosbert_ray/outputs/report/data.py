"""Collects what a report shows of an output: sums over receipts, rejected rows, and a sample of the vectors."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.kmeans import assign, fit
from kosbert_ray.analysis.projection import project
from kosbert_ray.analysis.terms import top_terms
from kosbert_ray.config import JobConfig
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import InputError, KosbertError, UsageError, first_line
from kosbert_ray.job import model_ref
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.outputs.cluster_files import SUMMARY, read_summary
from kosbert_ray.outputs.kept import require_kept, text_column
from kosbert_ray.outputs.output import SAMPLED_SHARDS, Output
from kosbert_ray.outputs.report.kinds.base import Column, KindFigures, ReportedKind
from kosbert_ray.outputs.report.kinds.table import REPORTED
from kosbert_ray.outputs.report.words import MANY_VALUES, MISSING, NO_MODEL, NO_TEXTS
from kosbert_ray.outputs.sample import Sample, sample_kinds
from kosbert_ray.planning.options import PlanOptions
from kosbert_ray.shards.ledger import CLUSTERS_FOLDER
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.totals import Totals
from kosbert_ray.shards.vectors import read_rows, stored_bytes
from kosbert_ray.units import plural
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import Kind

MAX_REJECTED = 50  # slices whose rejected rows are read
EXAMPLES = 3  # of each reason
COLORED = 12  # groups that have a color on the map
LEAST_COLORED = 0.5  # of the rows, for clusters of the output to be shown
NAMED = 3  # words that name a cluster
OTHERS_NAME = "others"
CLUSTER = "cluster"  # what the map is colored by, if by no column
SHOWN_PAIRS = 5
DETAIL = re.compile(r"\(.*\)|'[^']*'|[\d,.]*\d")  # the part of a reason that differs from row to row

Note = tuple[str, dict[str, Any]]  # a text with fields, and their values
Vectors = npt.NDArray[np.float32]
Model = tuple[ModelSpec, Tokenizer]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rejected:
    """Rows rejected for one reason.

    Attributes:
        reason: the reason, without details.
        rows: how many rows were read.
        examples: some of them, as (address, reason, text).
    """

    reason: str
    rows: int
    examples: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Group:
    """A colour of the map.

    Attributes:
        name: the cluster's words, or the value of a column.
        rows: how many of the sampled rows.
        examples: some of their texts.
    """

    name: str
    rows: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two sampled rows, or one and its nearest.

    Attributes:
        cosine: of their vectors.
        first, second: their texts.
    """

    cosine: float
    first: str
    second: str


@dataclass(frozen=True)
class Mapped:
    """The sampled rows.

    Attributes:
        rows: how many.
        kinds: figures on their vectors, by kind. Those of the first kind decide the places, the clusters and the pairs.
        places: on the map, ``[n, 2]``.
        color: what the map is coloured by.
        groups: the colour group of each row.
        texts: their texts; empty if the output has none.
        by_size: the colour groups, the largest first.
        nearest: the pairs of different texts with the largest cosines.
        isolated: the rows whose nearest row is the farthest.
    """

    rows: int
    kinds: Mapping[Kind, KindFigures]
    places: Vectors
    color: str
    groups: tuple[str, ...]
    texts: tuple[str, ...]
    by_size: tuple[Group, ...]
    nearest: tuple[Pair, ...] = ()
    isolated: tuple[Pair, ...] = ()

    @property
    def first(self) -> ReportedKind:
        """The kind that decides the places, the clusters and the pairs."""
        return REPORTED[next(iter(self.kinds))]

    @property
    def named(self) -> tuple[tuple[str | None, KindFigures], ...]:
        """Each kind's name for headings, None if there is no other kind to tell it from, and its figures."""
        return tuple((REPORTED[kind].name if len(self.kinds) > 1 else None, found) for kind, found in self.kinds.items())


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        output: the output directory.
        created: time at which the output was begun.
        version: of kosbert-ray, by which it was begun.
        digest: of the job.
        config: the job, with the reader's prices.
        written: the kinds of vectors in the output.
        done: whether the output is complete.
        receipts: of the shards in it.
        totals: their sums.
        rejected: by reason, the most frequent first.
        rejected_seen: how many rejected rows were read.
        lengths: tokens of the sampled texts, uncut; empty if there are none.
        max_seq_length: tokens that the model takes; None if it takes any number or cannot be loaded here.
        sample: None for an output without vectors.
        evaluation: figures of ``kosbert-ray evaluate --json``.
        notes: what is missing from the report, and why.
    """

    output: str
    created: str
    version: str
    digest: str
    config: JobConfig
    written: tuple[Kind, ...]
    done: bool
    receipts: tuple[Receipt, ...]
    totals: Totals
    rejected: tuple[Rejected, ...]
    rejected_seen: int
    lengths: npt.NDArray[np.int64]
    max_seq_length: int | None
    sample: Mapped | None
    evaluation: tuple[dict[str, Any], ...]
    notes: tuple[Note, ...]

    @property
    def kinds(self) -> tuple[tuple[str | None, KindFigures], ...]:
        """See :attr:`Mapped.named`; empty without a sample."""
        return self.sample.named if self.sample else ()


def report(
    output: Output, prices: PlanOptions, sample: int, color: str | None, text: str | None, evaluation: str | None
) -> Report:
    """Reads what a report shows.

    Args:
        output: the output.
        prices: of hardware and storage.
        sample: how many rows to draw.
        color: a kept column to colour the map by; None for clusters.
        text: the kept column to show; None for the job's own text.
        evaluation: a file that ``kosbert-ray evaluate --json`` wrote.

    Raises:
        InputError: a column is not kept, or the evaluation cannot be read.
        StorageError: the output cannot be read.
    """
    if sample < 2:
        raise UsageError("--sample: at least 2 rows")
    figures = _evaluation(evaluation) if evaluation else ()
    require_kept(output, "--color", color)
    text = text_column(output, text)
    notes: list[Note] = []
    if text is None:
        notes.append((NO_TEXTS, {}))
    output.warn_if_partial("in the report")
    notes += [(MISSING, {"error": notice}) for notice in output.ledger.notices]
    log.info(f"sampling {min(sample, output.totals.rows):,} of {plural(output.totals.rows, 'row')}")
    columns = [name for name in dict.fromkeys((text, color)) if name]
    keep = {kind: REPORTED[kind].keep for kind in output.kinds}
    samples = sample_kinds(output, sample, 0, columns, SAMPLED_SHARDS, keep)
    drawn = samples[output.kinds[0]]
    texts = [str(value) for value in drawn.table[text].to_pylist()] if text else []
    model = _model(output.job, notes)
    rejected, seen = _rejected(output)
    mapped = _mapped(output, samples, texts, color, model, notes) if len(drawn) > 1 else None
    return Report(
        output=output.storage.address,
        created=output.record.created,
        version=output.record.version,
        digest=output.record.digest,
        config=output.job.model_copy(update={"plan": prices}),
        written=output.kinds,
        done=output.complete,
        receipts=output.receipts,
        totals=output.totals,
        rejected=rejected,
        rejected_seen=seen,
        lengths=_lengths(model[1], texts) if model and texts else np.empty(0, np.int64),
        max_seq_length=model[0].length_limit if model else None,
        sample=mapped,
        evaluation=figures,
        notes=tuple(notes),
    )


def _evaluation(path: str) -> tuple[dict[str, Any], ...]:
    try:
        rows = [dict(json.loads(line)) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
        return tuple({**row, "figures": dict(row["figures"])} for row in rows)
    except OSError as error:
        raise InputError(f"--evaluation {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--evaluation {path}: not what kosbert-ray evaluate --json writes ({first_line(error)})"
        ) from error


def _mapped(
    output: Output,
    samples: Mapping[Kind, Sample],
    texts: list[str],
    color: str | None,
    model: Model | None,
    notes: list[Note],
) -> Mapped:
    first, drawn = next(iter(samples.items()))
    points = REPORTED[first].points(drawn.vectors)
    groups = [str(value) for value in drawn.table[color].to_pylist()] if color else _clusters(output, drawn, points, texts)
    if color and (values := len({*groups})) > COLORED:
        notes.append((MANY_VALUES, {"column": color, "values": values, "colored": COLORED}))
    nearest, isolated = (
        _pairs(REPORTED[first].cosines(drawn.vectors), np.asarray(points.any(axis=1)), texts) if texts else ((), ())
    )
    return Mapped(
        rows=len(drawn),
        kinds={kind: _figures(output, kind, sample, model) for kind, sample in samples.items()},
        places=project(points),
        color=color or CLUSTER,
        groups=tuple(groups),
        texts=tuple(texts),
        by_size=_by_size(groups, texts),
        nearest=nearest,
        isolated=isolated,
    )


def _figures(output: Output, kind: Kind, drawn: Sample, model: Model | None) -> KindFigures:
    item, shards = output.kind_format(kind), {shard for shard, _ in drawn.places}

    def row_bytes() -> float:
        rows = sum(receipt.rows for receipt in output.receipts if receipt.shard in shards)
        return sum(stored_bytes(output.storage, shard, item) for shard in shards) / rows

    return REPORTED[kind].measured(drawn.vectors, Column(item, row_bytes, model))


def _by_size(groups: list[str], texts: list[str]) -> tuple[Group, ...]:
    examples: dict[str, dict[str, None]] = defaultdict(dict)
    for name, content in zip(groups, texts, strict=False):
        if len(examples[name]) < EXAMPLES:
            examples[name][content] = None
    counted = sorted(Counter(groups).items(), key=lambda item: (item[0] == OTHERS_NAME, -item[1], item[0]))
    return tuple(Group(name, rows, tuple(examples[name])) for name, rows in counted)


def _pairs(cosines: Vectors, filled: npt.NDArray[np.bool_], texts: list[str]) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The nearest pairs of sampled rows, and the most isolated rows with their nearest, of those that have a vector.

    Overwrites the cosines.
    """
    numbers = {content: number for number, content in enumerate(texts)}  # a NumPy array of long texts takes gigabytes
    labels = np.array([numbers[content] for content in texts])
    cosines[labels[:, None] == labels[None]] = -2  # equal texts, among them each row itself
    cosines[~filled] = cosines[:, ~filled] = -2
    best = cosines.argmax(1)
    value = cosines[np.arange(len(best)), best]
    order = np.argsort(-value, kind="stable").tolist()
    pairs: dict[tuple[str, str], Pair] = {}
    for row in order:
        first, second = sorted((texts[row], texts[int(best[row])]))
        if value[row] > -2:
            pairs.setdefault((first, second), Pair(float(value[row]), first, second))
    lonely = [row for row in reversed(order) if value[row] > -2][:SHOWN_PAIRS]
    isolated = tuple(Pair(float(value[row]), texts[row], texts[int(best[row])]) for row in lonely)
    return tuple(pairs.values())[:SHOWN_PAIRS], isolated


def _clusters(output: Output, drawn: Sample, points: Vectors, texts: list[str]) -> list[str]:
    """Names each row's cluster: from the output's own clustering, or else from one of the sample's points."""
    files = {entry.name for entry in output.storage.list(CLUSTERS_FOLDER)}
    if SUMMARY in files and all(f"{CLUSTERS_FOLDER}/{shard}" in files for shard, _ in drawn.places):
        tables = [
            read_rows(output.storage, f"{CLUSTERS_FOLDER}/{shard}", rows, ["cluster"]) for shard, rows in drawn.places
        ]
        labels = [-1 if label is None else int(label) for table in tables for label in table["cluster"].to_pylist()]
        common = {label for label, _ in Counter(labels).most_common(COLORED)} - {-1}
        words = {one.number: one.terms for one in read_summary(output.storage)}
        if sum(label in common for label in labels) >= LEAST_COLORED * len(labels):  # else groups of near-duplicates
            return [_cluster_name(label, words.get(label, [])) if label in common else OTHERS_NAME for label in labels]
    directions = unit(points)
    centres = fit(lambda _: [directions], min(COLORED, max(2, int(np.sqrt(len(drawn) / 2)))), 3, 0)
    # A row without a vector, such as an empty sparse one, is in no cluster.
    found = np.where(points.any(axis=1), assign(directions, centres)[0], -1).tolist()
    of: dict[int, list[str]] = defaultdict(list)
    for label, content in zip(found, texts or [""] * len(found), strict=True):
        of[label].append(content)
    labels = sorted(of.keys() - {-1})
    terms = top_terms([of[label] for label in labels], NAMED) if texts else [[] for _ in labels]
    names = {label: ", ".join(words) or f"#{label}" for label, words in zip(labels, terms, strict=True)}
    return [names.get(label, OTHERS_NAME) for label in found]


def _cluster_name(label: int, words: Sequence[str]) -> str:
    return f"{label}: {', '.join(words[:NAMED])}" if words else f"#{label}"


def _model(job: JobConfig, notes: list[Note]) -> Model | None:
    try:
        spec = model_ref(job).spec()
        return spec, Tokenizer.load(spec)
    except KosbertError as error:
        notes.append((NO_MODEL, {"error": error}))
        return None


def _lengths(tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[np.int64]:
    tokens = tokenizer(texts)
    return (tokens.lengths + tokens.dropped)[tokens.rows].astype(np.int64)


def _rejected(output: Output) -> tuple[tuple[Rejected, ...], int]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for receipt in [receipt for receipt in output.receipts if receipt.rejected][:MAX_REJECTED]:
        for row in read_rejected(output.storage, receipt.shard).to_pylist():
            reason = re.sub(r"\s+", " ", DETAIL.sub("…", row["reason"])).strip()
            counts[reason] += 1
            if len(examples[reason]) < EXAMPLES:
                where = f"row {row['row']:,}" if row["row"] is not None else f"byte {row['byte_offset']:,}"
                examples[reason].append((f"{row['file']}: {where}", row["reason"], row["text"] or ""))
    found = tuple(Rejected(reason, count, tuple(examples[reason])) for reason, count in counts.most_common())
    return found, sum(counts.values())
