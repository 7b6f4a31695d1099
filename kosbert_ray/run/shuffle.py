"""A shuffle: tasks read tables, whose rows are grouped by partition, and a function writes each partition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

PARTITION = "partition"


@dataclass(frozen=True)
class Shuffle:
    """A shuffle that an executor runs.

    Attributes:
        name: shown while it runs.
        tasks: what each task reads.
        read: yields the tables of a task, of one schema with an int32 column ``partition``; at least one table, which may
            be empty.
        task_bytes: approximate bytes that a task yields.
        partitions: number of partitions; the rows of one are held in memory.
        write: writes the rows of one partition and returns a table about them.
    """

    name: str
    tasks: Sequence[Any]
    read: Callable[[Any], Iterator[pa.Table]]
    task_bytes: int
    partitions: int
    write: Callable[[pa.Table], pa.Table]
