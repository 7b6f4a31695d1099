"""What a report tells of an output: sums over its receipts, its rejected rows, and a sample of its vectors."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.health import Health, health
from kosbert_ray.analysis.kmeans import assign, fit
from kosbert_ray.analysis.projection import project
from kosbert_ray.analysis.terms import top_terms
from kosbert_ray.config import CHUNK_TEXT, JobConfig
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import InputError, KosbertError, UsageError, first_line
from kosbert_ray.job import job_of_output, model_ref, open_output
from kosbert_ray.outputs.clusters import FOLDER, SUMMARY
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.totals import Totals
from kosbert_ray.shards.vectors import read_vectors, rows_of
from kosbert_ray.storage import Storage
from kosbert_ray.vector_math import unit

MOST_SHARDS = 16  # that a sample is taken of
MOST_REJECTED = 50  # slices whose rejected rows are read
EXAMPLES = 3  # of each reason
CLUSTERS = 12  # on the map, where the output has none of its own
NAMED = 3  # words that name a cluster
DETAIL = re.compile(r"\(.*\)|'[^']*'|[\d,.]*\d")  # of a reason: what differs from row to row

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rejected:
    """Rows rejected for one reason: how many were seen, and some of them, as (address, reason, text)."""

    reason: str
    rows: int
    examples: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Sample:
    """Some rows: their health, their places on the map, and by which they are coloured; texts where they are kept."""

    rows: int
    health: Health
    places: Vectors
    color: str
    groups: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        output: the output directory.
        job: its job.json.
        config: its job, with the prices of the one who asks.
        done: whether it is complete.
        receipts: of what is in it.
        totals: their sums.
        rejected: by reason, most first.
        rejected_seen: how many rows these are.
        lengths: tokens of the sample's texts, uncut; empty where there are none.
        max_seq_length: tokens that the model takes; None where it cannot be told from here.
        sample: None for an output without vectors.
        evaluation: figures of ``kosbert-ray evaluate --json``.
        notes: what is not in it, and why.
    """

    output: str
    job: dict[str, Any]
    config: JobConfig
    done: bool
    receipts: tuple[Receipt, ...]
    totals: Totals
    rejected: tuple[Rejected, ...]
    rejected_seen: int
    lengths: npt.NDArray[np.int64]
    max_seq_length: int | None
    sample: Sample | None
    evaluation: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def report(
    config: JobConfig, sample: int, color: str | None, text: str | None, evaluation: str | None, say: Callable[[str], None]
) -> Report:
    """Reads an output.

    Args:
        config: ``output.path`` says which; ``plan`` has the prices.
        sample: how many rows to look at.
        color: a kept column to colour the map by; None for clusters.
        text: the kept column to show; None for the job's own.
        evaluation: a file that ``kosbert-ray evaluate --json`` wrote.
        say: takes a line for the user.

    Raises:
        InputError: it is no output of ours, or lacks the column.
        StorageError: it cannot be read.
    """
    if sample < 2:
        raise UsageError("--sample: at least 2 rows")
    figures = _evaluation(evaluation) if evaluation else ()
    storage = open_output(config)
    ledger = Ledger(storage)
    job, said = job_of_output(config, ledger)
    kept = job.columns()
    for option, column in (("--color", color), ("--text", text)):
        if column is not None and column not in kept:
            raise InputError(f"{option} {column}: not among the kept columns ({', '.join(kept) or 'none'})")
    usual = [CHUNK_TEXT, *job.input.row_text().columns]
    text = text or next((name for name in usual if name in kept), None)
    receipts = ledger.held()
    notes: list[str] = []
    if text is None:
        notes.append(f"The texts are not in the output (keep {usual[1]}), so the map has none and lengths are not shown.")
    say(f"looking at {sample:,} rows of {sum(receipt.rows for receipt in receipts):,}")
    found, texts = _sample(storage, receipts, EmbeddingFormat.of(said["fingerprint"]), sample, color, text)
    lengths, most = _lengths(job, texts, notes)
    rejected, seen = _rejected(storage, receipts)
    return Report(
        output=storage.address,
        job=said,
        config=job.model_copy(update={"plan": config.plan}),
        done=ledger.success() is not None,
        receipts=tuple(receipts),
        totals=Totals.of(receipts),
        rejected=rejected,
        rejected_seen=seen,
        lengths=lengths,
        max_seq_length=most,
        sample=found,
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


def _sample(
    storage: Storage, receipts: Sequence[Receipt], format: EmbeddingFormat, wanted: int, color: str | None, text: str | None
) -> tuple[Sample | None, list[str]]:
    """Rows of some shards, each as likely as any other of these, the same each time; and their texts, in full."""
    random = np.random.default_rng(0)
    there = [receipt for receipt in receipts if receipt.rows]
    chosen = [there[index] for index in sorted(random.permutation(len(there))[:MOST_SHARDS].tolist())]
    total = sum(receipt.rows for receipt in chosen)
    picked = np.sort(random.permutation(total)[:wanted])
    vectors: list[Vectors] = []
    places: list[tuple[str, list[int]]] = []
    first = 0
    for receipt in chosen:
        inside = picked[(picked >= first) & (picked < first + receipt.rows)] - first
        first += receipt.rows
        numbers, start = [], 0
        for block, rows in read_vectors(storage, receipt.shard, format):
            here = inside[(inside >= start) & (inside < start + len(rows))] - start
            vectors.append(block[here])
            numbers += rows[here].tolist()
            start += len(rows)
        places.append((receipt.shard, numbers))
    if sum(map(len, vectors)) < 2:
        return None, []
    matrix = np.concatenate(vectors)
    columns = [name for name in dict.fromkeys((text, color)) if name]
    kept = [row for shard, numbers in places for row in rows_of(storage, shard, numbers, columns)]
    texts = [str(row[text]) for row in kept] if text else []
    groups = [str(row[color]) for row in kept] if color else _clusters(storage, places, matrix, texts)
    return Sample(len(matrix), health(matrix), project(matrix), color or "cluster", tuple(groups), tuple(texts)), texts


def _clusters(storage: Storage, places: Sequence[tuple[str, list[int]]], vectors: Vectors, texts: list[str]) -> list[str]:
    """A name for each row's cluster: of the output's own clusters, or of the sample's."""
    named = {entry.name for entry in storage.list(FOLDER)}
    if SUMMARY in named and all(f"{FOLDER}/{shard}" in named for shard, _ in places):
        labels = [
            -1 if row["cluster"] is None else int(row["cluster"])
            for shard, numbers in places
            for row in rows_of(storage, f"{FOLDER}/{shard}", numbers, ["cluster"])
        ]
        common = dict(Counter(labels).most_common(CLUSTERS))
        return [f"cluster {label}" if label in common and label >= 0 else "others" for label in labels]
    directions = unit(vectors)
    centres = fit(lambda _: [directions], min(CLUSTERS, max(2, int(np.sqrt(len(vectors) / 2)))), 3, 0)
    found = assign(directions, centres)[0].tolist()
    of: dict[int, list[str]] = defaultdict(list)
    for label, content in zip(found, texts or [""] * len(found), strict=True):
        of[label].append(content)
    labels = sorted(of)
    terms = top_terms(["\n".join(of[label]) for label in labels], NAMED) if texts else [[] for _ in labels]
    names = {
        label: f"{number + 1}: {', '.join(words)}" if words else f"cluster {number + 1}"
        for number, (label, words) in enumerate(zip(labels, terms, strict=True))
    }
    return [names[label] for label in found]


def _lengths(job: JobConfig, texts: list[str], notes: list[str]) -> tuple[npt.NDArray[np.int64], int | None]:
    nothing = np.empty(0, np.int64)
    try:
        spec = model_ref(job).spec()
        if not texts:
            return nothing, spec.max_seq_length
        tokens = Tokenizer.load(spec)(texts)
    except KosbertError as error:
        notes.append(f"Lengths are not shown: the model cannot be had here ({error}).")
        return nothing, None
    return (tokens.lengths + tokens.dropped)[tokens.rows].astype(np.int64), spec.max_seq_length


def _rejected(storage: Storage, receipts: Sequence[Receipt]) -> tuple[tuple[Rejected, ...], int]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for receipt in [receipt for receipt in receipts if receipt.rejected][:MOST_REJECTED]:
        for row in read_rejected(storage, receipt.shard).to_pylist():
            reason = re.sub(r"\s+", " ", DETAIL.sub("…", row["reason"])).strip()
            counts[reason] += 1
            if len(examples[reason]) < EXAMPLES:
                where = f"row {row['row']:,}" if row["row"] is not None else f"byte {row['byte_offset']:,}"
                examples[reason].append((f"{row['file']}: {where}", row["reason"], row["text"] or ""))
    found = tuple(Rejected(reason, count, tuple(examples[reason])) for reason, count in counts.most_common())
    return found, sum(counts.values())
