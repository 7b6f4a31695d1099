"""The shuffle of ``dedup: corpus`` on Ray Data."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import ray

from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.run.corpus_dedup import PARTITION, distinct_texts, write_shared
from kosbert_ray.run.executors.base import Pending
from kosbert_ray.run.executors.ray.planned_reads import READ_CPUS, PlannedReads, shared_read_tasks
from kosbert_ray.run.executors.ray.session import row_blocks
from kosbert_ray.storage import Storage


def write_shared_texts(reader: FragmentReader, partitions: int, pending: Pending, output: Storage) -> pa.Table:
    """Groups the distinct texts of all slices by partition, and writes those that occur more than once."""
    most_bytes = reader.limits.max_bytes
    tasks = shared_read_tasks(pending, most_bytes)
    reads = PlannedReads("DistinctTexts", partial(distinct_texts, reader, partitions), tasks, most_bytes)
    with row_blocks():
        dataset = ray.data.read_datasource(reads, override_num_blocks=len(tasks), num_cpus=READ_CPUS)
        groups = dataset.groupby(PARTITION, num_partitions=partitions)
        written = groups.map_groups(write_shared, fn_kwargs={"storage": output}, batch_format="pyarrow")
        return pa.concat_tables(ray.get(written.to_arrow_refs()))
