"""Parallel work on shards: threads here, or Ray tasks that the caller passes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """Applies a function to many items at once."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Returns ``function(item)`` for each item, in the order of the items."""
        ...


@dataclass(frozen=True)
class ThreadMapper:
    """Maps with threads of this process.

    Attributes:
        threads: how many.
    """

    threads: int

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Returns ``function(item)`` for each item, in the order of the items."""
        pool = ThreadPoolExecutor(self.threads)
        try:
            return list(pool.map(function, items))
        finally:
            pool.shutdown(cancel_futures=True)
