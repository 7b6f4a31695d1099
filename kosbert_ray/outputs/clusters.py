"""Clusters of an output's rows: a label and a distance for each row beside its shard, and what each cluster is about."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.analysis.duplicates import communities
from kosbert_ray.analysis.kmeans import assign, fit
from kosbert_ray.analysis.terms import top_terms
from kosbert_ray.config import CHUNK_TEXT, JobConfig
from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.job import job_of_output, open_output
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.vectors import read_vectors, rows_of
from kosbert_ray.storage import Storage
from kosbert_ray.vector_math import unit

FOLDER = "_clusters"
SUMMARY = f"{FOLDER}/_clusters.parquet"
CENTRAL = 200  # texts nearest to a centre that its words are taken from
TERMS, TEXTS = 8, 3
PASSES = 3
MAX_COMPARED = 200_000  # rows whose pairs are all compared: some minutes on two cores

Vectors = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """One cluster: its number, its rows, their mean distance (1 minus the cosine) to its centre, what it is about."""

    number: int
    rows: int
    distance: float
    terms: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Run:
    """Identifies a clustering in each file's footer: its run, and the digest of the output's job."""

    run: str
    sha256: str


@dataclass(frozen=True)
class Clustering:
    """What came of it: the clusters, largest first, how many rows are in one, and where it is written."""

    folder: str
    clusters: list[Cluster]
    rows: int
    seconds: float


@dataclass(frozen=True)
class _Shards:
    """The vectors of an output, shard by shard."""

    storage: Storage
    names: list[str]
    format: EmbeddingFormat

    def read(self, name: str) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """A shard's vectors, and which rows they are of."""
        blocks = list(read_vectors(self.storage, name, self.format))
        if not blocks:
            return np.empty((0, self.format.dimension), np.float32), np.empty(0, np.int64)
        vectors, rows = zip(*blocks, strict=True)
        return np.concatenate(vectors), np.concatenate(rows)

    def blocks(self, seed: int) -> Iterator[Vectors]:
        """All vectors, shard by shard in an order that ``seed`` shuffles."""
        for index in np.random.default_rng(seed).permutation(len(self.names)).tolist():
            yield self.read(self.names[index])[0]


def cluster(
    config: JobConfig, clusters: int | None, threshold: float | None, text: str | None, seed: int, say: Say
) -> Clustering:
    """Groups the rows of ``config.output.path`` and writes ``_clusters/`` into it.

    ``_clusters/<shard>`` has, row by row as in the shard, its kept columns, ``cluster`` (int32) and ``distance`` (float32),
    null for rows in none; ``_clusters/_clusters.parquet`` a row for each cluster. That one is written last: without it the
    clustering was interrupted.

    Args:
        config: ``output.path`` says where.
        clusters: how many clusters of k-means; None for the square root of half the rows.
        threshold: instead, groups of rows that a chain of cosines of so much or more connects.
        text: the kept column that words and examples are taken from; None for the job's own text column.
        seed: of k-means.
        say: takes a line for the user.

    Raises:
        InputError: there is no output of ours, or nothing in it, or no such column.
        UsageError: an option does not go with the output.
    """
    started = time.monotonic()
    storage = open_output(config)
    ledger = Ledger(storage)
    job, said = job_of_output(config, ledger)
    shards = _Shards(storage, [receipt.shard for receipt in ledger.held()], EmbeddingFormat.of(said["fingerprint"]))
    if not any(len(vectors) for name in shards.names for vectors, _ in read_vectors(storage, name, shards.format)):
        raise InputError(f"{storage.url()}: no vectors in it yet")
    for notice in ledger.notices:
        say(f"warning: {notice}")
    if not ledger.success():
        say(f"warning: {storage.url()} is not complete: only the rows committed so far are clustered")
    kept = job.columns()
    usual = [CHUNK_TEXT, *job.input.row_text().columns]
    column: str | None = text or next((name for name in usual if name in kept), usual[1])
    if text and text not in kept:
        raise InputError(f"--text {text}: not among the kept columns ({', '.join(kept) or 'none'})")
    if column not in kept:
        say(f"the texts are not in the output (keep {column} to have words and examples)")
        column = None
    label = _by_threshold(shards, threshold, say) if threshold is not None else _by_kmeans(shards, clusters, seed, say)
    central = _Central()
    # Delete an older clustering first, so that a killed one never mixes the labels of two.
    storage.delete([SUMMARY])
    storage.delete([entry.name for entry in storage.list(FOLDER)])
    run = Run(ledger.run, str(said["sha256"]))
    for index, name in enumerate(shards.names):
        vectors, places = shards.read(name)
        labels, distances = label(index, vectors)
        _write_labels(storage, name, list(kept), labels, distances, places, run)
        central.add(labels, distances, index, places)
    found = _describe(storage, shards.names, central, column)
    _write_summary(storage, found, run)
    return Clustering(storage.url(FOLDER), found, sum(one.rows for one in found), time.monotonic() - started)


def _rows(shards: _Shards) -> int:
    """How many rows the output has, those without a vector among them, by its shards' footers."""
    rows = 0
    for name in shards.names:
        with shards.storage.open(name) as file:
            try:
                rows += pq.read_metadata(file).num_rows
            except pa.ArrowException as error:
                where = shards.storage.url(name)
                raise StorageError(f"{where}: cannot be read ({first_line(error)}); see kosbert-ray verify") from error
    return rows


Label = Callable[[int, Vectors], tuple[npt.NDArray[np.int32], Vectors]]


def _by_kmeans(shards: _Shards, clusters: int | None, seed: int, say: Say) -> Label:
    if clusters is None:
        clusters = max(2, round((_rows(shards) / 2) ** 0.5))
    if clusters < 2:
        raise UsageError("--clusters: ask for two or more")
    say(f"k-means: {clusters:,} clusters, {PASSES} passes over {len(shards.names):,} shards")
    centres = fit(lambda number: shards.blocks(seed + number), clusters, PASSES, seed)
    return lambda _, vectors: assign(vectors, centres)


def _by_threshold(shards: _Shards, threshold: float, say: Say) -> Label:
    if not 0 < threshold <= 1:
        raise UsageError("--threshold: a cosine above 0, and at most 1")
    parts = [shards.read(name)[0] for name in shards.names]
    total = sum(map(len, parts))
    if total > MAX_COMPARED:
        raise UsageError(
            f"--threshold compares all pairs, of at most {MAX_COMPARED:,} rows; there are {total:,}: use --clusters"
        )
    say(f"comparing all pairs of {total:,} rows")
    vectors = unit(np.concatenate(parts))
    groups = communities(vectors, threshold)
    ends = np.cumsum([0, *map(len, parts)])
    centres = np.zeros((groups.max() + 1, shards.format.dimension), np.float32)
    np.add.at(centres, groups[groups >= 0], vectors[groups >= 0])
    centres = unit(centres)

    def label(index: int, block: Vectors) -> tuple[npt.NDArray[np.int32], Vectors]:
        labels = groups[ends[index] : ends[index + 1]]
        distances = np.zeros(len(block), np.float32)
        inside = labels >= 0
        distances[inside] = 1 - (unit(block[inside]) * centres[labels[inside]]).sum(1)
        return labels, distances

    return label


class _Central:
    """Sizes and mean distances of clusters, and the rows nearest to their centres."""

    def __init__(self) -> None:
        self.sizes = np.zeros(0, np.int64)
        self.sums: npt.NDArray[Any] = np.zeros(0)
        self.label, self.shard, self.row = (np.empty(0, np.int64) for _ in range(3))
        self.distance = np.empty(0, np.float32)

    def add(self, labels: npt.NDArray[np.int32], distances: Vectors, shard: int, rows: npt.NDArray[np.int64]) -> None:
        """Counts a shard's rows; a label of -1 is none."""
        inside = labels >= 0
        labels, distances, rows = labels[inside], distances[inside], rows[inside]
        count = max(len(self.sizes), int(labels.max(initial=-1)) + 1)
        self.sizes = np.bincount(labels, minlength=count) + np.pad(self.sizes, (0, count - len(self.sizes)))
        self.sums = np.bincount(labels, distances, count) + np.pad(self.sums, (0, count - len(self.sums)))
        label = np.concatenate([self.label, labels])
        distance = np.concatenate([self.distance, distances])
        shards = np.concatenate([self.shard, np.full(len(labels), shard)])
        row = np.concatenate([self.row, rows])
        order = np.lexsort((row, shards, distance, label))
        rank = np.arange(len(order)) - np.searchsorted(label[order], label[order])
        few = order[rank < CENTRAL]
        self.label, self.distance, self.shard, self.row = label[few], distance[few], shards[few], row[few]


def _describe(storage: Storage, names: list[str], central: _Central, column: str | None) -> list[Cluster]:
    nearest: dict[int, list[str]] = {number: [] for number in np.flatnonzero(central.sizes).tolist()}
    if column:
        texts: dict[tuple[int, int], str] = {}
        for shard in np.unique(central.shard).tolist():
            rows = central.row[central.shard == shard].tolist()
            found = rows_of(storage, names[shard], rows, [column])
            texts |= {(shard, row): str(values[column]) for row, values in zip(rows, found, strict=True)}
        for number, shard, row in zip(central.label.tolist(), central.shard.tolist(), central.row.tolist(), strict=True):
            nearest[number].append(texts[shard, row])
    words = top_terms(["\n".join(texts) for texts in nearest.values()], TERMS) if column else [[]] * len(nearest)
    clusters = [
        Cluster(
            number,
            int(central.sizes[number]),
            float(central.sums[number] / central.sizes[number]),
            terms,
            list(dict.fromkeys(nearest[number]))[:TEXTS],
        )
        for number, terms in zip(nearest, words, strict=True)
    ]
    return sorted(clusters, key=lambda one: (-one.rows, one.number))


def _write_labels(
    storage: Storage,
    name: str,
    keep: list[str],
    labels: npt.NDArray[np.int32],
    distances: Vectors,
    rows: npt.NDArray[np.int64],
    run: Run,
) -> None:
    """A file row by row as the shard; rows without a vector, and those in no cluster, have nulls."""
    with storage.open(name) as file:
        shard = pq.ParquetFile(file)
        total = shard.metadata.num_rows
        table = shard.read(columns=keep)
    has = np.zeros(total, bool)
    has[rows[labels >= 0]] = True
    all_labels, all_distances = np.zeros(total, np.int32), np.zeros(total, np.float32)
    all_labels[rows], all_distances[rows] = labels, distances
    table = table.append_column("cluster", pa.array(all_labels, mask=~has))
    _write(storage, f"{FOLDER}/{name}", table.append_column("distance", pa.array(all_distances, mask=~has)), run)


def _write_summary(storage: Storage, clusters: list[Cluster], run: Run) -> None:
    table = pa.table(
        {
            "cluster": pa.array([one.number for one in clusters], pa.int32()),
            "rows": pa.array([one.rows for one in clusters], pa.int64()),
            "distance": pa.array([one.distance for one in clusters], pa.float32()),
            "terms": pa.array([one.terms for one in clusters], pa.list_(pa.string())),
            "texts": pa.array([one.texts for one in clusters], pa.list_(pa.string())),
        }
    )
    _write(storage, SUMMARY, table, run)


def _write(storage: Storage, name: str, table: pa.Table, run: Run) -> None:
    sink = pa.BufferOutputStream()
    metadata = {b"kosbert_ray.clustering": json.dumps(asdict(run)).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write_atomic(name, sink.getvalue())
