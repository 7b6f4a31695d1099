"""The executors. To add one, write its module (see ``base.Executor``) and add an entry here. Loads none of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig
    from kosbert_ray.run.executors.base import Executor

EXECUTORS: dict[str, str] = {
    "ray": "kosbert_ray.run.executors.ray.executor",
    "local": "kosbert_ray.run.executors.local",
}


def started(name: str, config: JobConfig) -> AbstractContextManager[Executor]:
    """Starts an executor until the block ends.

    Raises:
        JobFailed: it cannot be started.
    """
    found: AbstractContextManager[Executor] = import_module(EXECUTORS[name]).started(config)
    return found
