"""The plan as a Ray Data datasource: which fragments each read task reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from kosbert_ray.run.executors.base import Pending
from kosbert_ray.run.stages.work import MAX_BUNDLED

READ_CPUS = 0.5  # of a read task
MAX_READ_TASKS = 4096  # the driver puts each into the object store before the first one runs


def shared_read_tasks(fragments: Pending, most_bytes: int) -> list[Pending]:
    """Groups a plan into read tasks.

    Args:
        fragments: the plan.
        most_bytes: bytes of input per task; more if there would be too many tasks.
    """
    total = sum(fragment.input_bytes for fragment, _ in fragments)
    most_bytes = max(most_bytes, total // MAX_READ_TASKS)
    most = max(MAX_BUNDLED, -(-len(fragments) // MAX_READ_TASKS))
    tasks: list[Pending] = []
    size = 0
    for item in fragments:
        if not tasks or len(tasks[-1]) == most or size + item[0].input_bytes > most_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(item)
        size += item[0].input_bytes
    return tasks


class PlannedReads(Datasource):
    """A datasource with the plan's own read tasks.

    Args:
        name: the stage's name in Ray.
        read: yields the tables of one read task.
        tasks: the fragments of each read task.
        size: approximate bytes that one task yields.
    """

    def __init__(self, name: str, read: Callable[[Pending], Iterator[pa.Table]], tasks: list[Pending], size: int) -> None:
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
        """One task for each group of fragments, whatever parallelism Ray asks for."""
        del parallelism, per_task_row_limit, data_context
        return [
            ReadTask(
                partial(self._read, task),
                BlockMetadata(num_rows=None, size_bytes=self._size, input_files=(task[0][0].file.name,), exec_stats=None),
            )
            for task in self._tasks
        ]
