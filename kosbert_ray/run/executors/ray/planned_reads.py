"""A Ray Data datasource with the plan's own read tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

READ_CPUS = 0.5  # of a read task


class PlannedReads(Datasource):
    """A datasource with the plan's own read tasks.

    Args:
        name: the stage's name in Ray.
        read: yields the tables of one read task.
        tasks: what each task reads.
        size: approximate bytes that one task yields.
    """

    def __init__(self, name: str, read: Callable[[Any], Iterator[pa.Table]], tasks: Sequence[Any], size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self._read, self._tasks, self._size = name, read, tasks, size

    def get_name(self) -> str:
        """The stage's name in Ray."""
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown until the files are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The given tasks, whatever parallelism Ray asks for."""
        del parallelism, per_task_row_limit, data_context
        return [
            ReadTask(
                partial(self._read, task),
                BlockMetadata(num_rows=None, size_bytes=self._size, input_files=None, exec_stats=None),
            )
            for task in self._tasks
        ]
