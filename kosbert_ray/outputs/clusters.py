"""Clusters the rows of an output: a label and a distance for each row, and typical words and texts for each cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.duplicates import communities
from kosbert_ray.analysis.kmeans import assign, fit
from kosbert_ray.analysis.terms import top_terms
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.outputs.cluster_files import (
    Cluster,
    ClusterRun,
    delete_clustering,
    write_labels,
    write_summary,
)
from kosbert_ray.outputs.kept import text_column
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.ledger import CLUSTERS_FOLDER
from kosbert_ray.units import plural
from kosbert_ray.vectors.arithmetic import unit

CENTRAL_TEXTS = 200  # texts nearest to a centre from which a cluster's words are taken
TERMS, TEXTS = 8, 3
PASSES = 3
MAX_COMPARED = 200_000  # rows whose pairs are all compared: some minutes on two cores

Vectors = npt.NDArray[np.float32]
Label = Callable[[int, Vectors], tuple[npt.NDArray[np.int32], Vectors]]  # shard's index, vectors → labels, distances

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clustering:
    """The result of a clustering.

    Attributes:
        folder: address of its files.
        clusters: the clusters, largest first.
        rows: how many rows are in a cluster.
        seconds: how long it took.
    """

    folder: str
    clusters: list[Cluster]
    rows: int
    seconds: float


def cluster(output: Output, clusters: int | None, threshold: float | None, text: str | None, seed: int) -> Clustering:
    """Clusters the rows of an output and writes the result to its folder ``_clusters/``.

    Args:
        output: the output.
        clusters: number of clusters of k-means; None for the square root of half the rows.
        threshold: instead of k-means, group rows that a chain of cosines of at least this value connects.
        text: the kept column from which words and examples are taken; None for the job's own text column.
        seed: of k-means.

    Raises:
        InputError: there are no vectors yet, or no such column.
        UsageError: an option is out of range.
    """
    started = time.monotonic()
    column = text_column(output, text)
    shards = output.shards()
    if not output.totals.rows:
        raise InputError(f"{output.storage.url()}: no vectors in it yet")
    output.warn_if_partial("clustered")
    if column is None:
        log.info(
            "the output has no texts to take words and examples from: it was made with --no-text or by an older version"
        )
    label = _by_threshold(output, threshold) if threshold is not None else _by_kmeans(output, clusters, seed)
    central = _CentralRows()
    delete_clustering(output.storage)
    run = ClusterRun(output.ledger.run, output.record.digest)
    for index, name in enumerate(shards):
        vectors, rows = _read(output, name)
        labels, distances = label(index, vectors)
        write_labels(output, name, labels, distances, rows, run)
        central.add(labels, distances, index, rows)
    found = _describe(output, central, column)
    write_summary(output.storage, found, run)
    rows_in_clusters = sum(one.rows for one in found)
    return Clustering(output.storage.url(CLUSTERS_FOLDER), found, rows_in_clusters, time.monotonic() - started)


def _read(output: Output, shard: str) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Reads a shard's vectors and their row numbers."""
    blocks = list(output.vectors(shard))
    if not blocks:
        return np.empty((0, output.dense.dimension), np.float32), np.empty(0, np.int64)
    vectors, rows = zip(*blocks, strict=True)
    return np.concatenate(vectors), np.concatenate(rows)


def _by_kmeans(output: Output, clusters: int | None, seed: int) -> Label:
    if clusters is None:
        clusters = max(2, round((output.totals.rows / 2) ** 0.5))
    if clusters < 2:
        raise UsageError("--clusters: ask for two or more")
    shards = output.shards()
    log.info(f"k-means: {plural(clusters, 'cluster')}, {PASSES} passes over {plural(len(shards), 'shard')}")

    def blocks(number: int) -> Iterator[Vectors]:
        """Yields all vectors, the shards in another order in each pass."""
        for index in np.random.default_rng(seed + number).permutation(len(shards)).tolist():
            yield _read(output, shards[index])[0]

    centres = fit(blocks, clusters, PASSES, seed)
    return lambda _, vectors: assign(vectors, centres)


def _by_threshold(output: Output, threshold: float) -> Label:
    if not 0 < threshold <= 1:
        raise UsageError("--threshold: a cosine above 0, and at most 1")
    total = output.totals.rows
    if total > MAX_COMPARED:
        raise UsageError(
            f"--threshold compares all pairs, of at most {MAX_COMPARED:,} rows; there are {total:,}: use --clusters"
        )
    log.info(f"comparing all pairs of {plural(total, 'row')}")
    parts = [_read(output, shard)[0] for shard in output.shards()]
    vectors = unit(np.concatenate(parts))
    groups = communities(vectors, threshold)
    ends = np.cumsum([0, *map(len, parts)])
    centres = np.zeros((groups.max() + 1, output.dense.dimension), np.float32)
    np.add.at(centres, groups[groups >= 0], vectors[groups >= 0])
    centres = unit(centres)

    def label(index: int, block: Vectors) -> tuple[npt.NDArray[np.int32], Vectors]:
        labels = groups[ends[index] : ends[index + 1]]
        distances = np.zeros(len(block), np.float32)
        inside = labels >= 0
        distances[inside] = 1 - (unit(block[inside]) * centres[labels[inside]]).sum(1)
        return labels, distances

    return label


class _CentralRows:
    """Collects the sizes and mean distances of clusters, and the rows nearest to their centres."""

    def __init__(self) -> None:
        self.sizes = np.zeros(0, np.int64)
        self.sums: npt.NDArray[Any] = np.zeros(0)
        self.label, self.shard, self.row = (np.empty(0, np.int64) for _ in range(3))
        self.distance = np.empty(0, np.float32)

    def add(self, labels: npt.NDArray[np.int32], distances: Vectors, shard: int, rows: npt.NDArray[np.int64]) -> None:
        """Adds a shard's rows; rows with the label -1 are in no cluster."""
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
        few = order[rank < CENTRAL_TEXTS]
        self.label, self.distance, self.shard, self.row = label[few], distance[few], shards[few], row[few]


def _describe(output: Output, central: _CentralRows, column: str | None) -> list[Cluster]:
    nearest: dict[int, list[str]] = {number: [] for number in np.flatnonzero(central.sizes).tolist()}
    if column:
        shards = output.shards()
        texts: dict[tuple[int, int], str] = {}
        for shard in np.unique(central.shard).tolist():
            rows = central.row[central.shard == shard]
            found = output.rows(shards[shard], rows, [column])[column].to_pylist()
            texts |= {(shard, row): str(value) for row, value in zip(rows.tolist(), found, strict=True)}
        for number, shard, row in zip(central.label.tolist(), central.shard.tolist(), central.row.tolist(), strict=True):
            nearest[number].append(texts[shard, row])
    words = top_terms([*nearest.values()], TERMS) if column else [[]] * len(nearest)
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
