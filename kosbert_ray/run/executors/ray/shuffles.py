"""Shuffles on Ray Data."""

from __future__ import annotations

import pyarrow as pa
import ray

from kosbert_ray.run.executors.ray.planned_reads import READ_CPUS, PlannedReads
from kosbert_ray.run.executors.ray.session import row_blocks
from kosbert_ray.run.shuffle import PARTITION, Shuffle


def run(shuffle: Shuffle) -> pa.Table:
    """Runs a shuffle; returns what its ``write`` returns for all partitions."""
    reads = PlannedReads(shuffle.name, shuffle.read, shuffle.tasks, shuffle.task_bytes)
    with row_blocks():
        dataset = ray.data.read_datasource(reads, override_num_blocks=len(shuffle.tasks), num_cpus=READ_CPUS)
        groups = dataset.groupby(PARTITION, num_partitions=shuffle.partitions)
        written = groups.map_groups(shuffle.write, batch_format="pyarrow")
        return pa.concat_tables(ray.get(written.to_arrow_refs()))
