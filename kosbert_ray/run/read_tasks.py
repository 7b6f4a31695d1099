"""Groups the fragments of a plan into read tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kosbert_ray.run.stages.work import MAX_BUNDLED

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import Pending

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
