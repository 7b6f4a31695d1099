"""The files of a clustering in ``_clusters/``: one of labels beside each shard, and a table of the clusters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.ledger import CLUSTERS_FOLDER
from kosbert_ray.shards.shard import reading
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

SUMMARY = f"{CLUSTERS_FOLDER}/_clusters.parquet"


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Attributes:
        number: its label.
        rows: how many rows it has.
        distance: mean distance of its rows to its centre, 1 minus the cosine.
        terms: words that are typical of its texts.
        texts: the texts nearest to its centre.
    """

    number: int
    rows: int
    distance: float
    terms: list[str]
    texts: list[str]


@dataclass(frozen=True)
class ClusterRun:
    """Identifies a clustering in each file's footer: its run, and the digest of the output's job."""

    run: str
    sha256: str


def delete_clustering(storage: Storage) -> None:
    """Deletes an earlier clustering, its summary first, so that an interrupted run never mixes the labels of two."""
    storage.delete([SUMMARY])
    storage.delete([entry.name for entry in storage.list(CLUSTERS_FOLDER)])


def write_labels(
    output: Output,
    shard: str,
    labels: npt.NDArray[np.int32],
    distances: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    run: ClusterRun,
) -> None:
    """Writes ``_clusters/<shard>``: row by row as in the shard, its kept columns, ``cluster`` and ``distance``.

    Args:
        output: the output.
        shard: the shard.
        labels: the cluster of each vector, ``[m]``; -1 for none.
        distances: of each vector to its cluster's centre, ``[m]``.
        rows: row number of each vector in the shard, ``[m]``; the other rows get nulls.
        run: the clustering.
    """
    with open_shard(output.storage, shard) as file:
        total = file.metadata.num_rows
        table = file.read(columns=list(output.columns))
    labelled = np.zeros(total, bool)
    labelled[rows[labels >= 0]] = True
    all_labels, all_distances = np.zeros(total, np.int32), np.zeros(total, np.float32)
    all_labels[rows], all_distances[rows] = labels, distances
    table = table.append_column("cluster", pa.array(all_labels, mask=~labelled))
    table = table.append_column("distance", pa.array(all_distances, mask=~labelled))
    _write(output.storage, f"{CLUSTERS_FOLDER}/{shard}", table, run)


def write_summary(storage: Storage, clusters: Sequence[Cluster], run: ClusterRun) -> None:
    """Writes ``_clusters/_clusters.parquet``, one row per cluster. Written last: without it, a run was interrupted."""
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


def read_summary(storage: Storage) -> list[Cluster]:
    """Reads ``_clusters/_clusters.parquet``; raises StorageError if it is missing or broken."""
    with reading(storage, SUMMARY):
        rows = pq.read_table(pa.BufferReader(storage.read(SUMMARY))).to_pylist()
        return [Cluster(row["cluster"], row["rows"], row["distance"], row["terms"], row["texts"]) for row in rows]


def _write(storage: Storage, name: str, table: pa.Table, run: ClusterRun) -> None:
    metadata = {b"kosbert_ray.clustering": json.dumps(asdict(run)).encode()}
    storage.write_atomic(name, to_parquet(table.replace_schema_metadata(metadata)))
