"""Maps a function over many items with Ray tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from kosbert_ray.run.executors.ray import session
from kosbert_ray.run.options import RayOptions

CHUNK_ITEMS = 16  # items per task

Item = TypeVar("Item")
Result = TypeVar("Result")


class RayMapper:
    """Maps with the tasks of the Ray in use. Get one from :func:`ray_mapper`."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Returns ``function(item)`` for each item, in the order of the items."""
        task: Any = ray.remote(lambda chunk: [function(item) for item in chunk])
        chunks = [task.remote(items[start : start + CHUNK_ITEMS]) for start in range(0, len(items), CHUNK_ITEMS)]
        return [result for chunk in ray.get(chunks) for result in chunk]


@contextlib.contextmanager
def ray_mapper(config: RayOptions) -> Iterator[RayMapper]:
    """Joins or starts Ray for the length of the block.

    Raises:
        JobFailed: the cluster cannot be reached, or a local Ray does not start.
    """
    with session.joined(config):
        yield RayMapper()
