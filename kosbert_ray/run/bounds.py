"""The bounds of a run that does not do all of its job: a trial of some rows, or a window of time.

Slices are cut as they are for the whole corpus, and only whole ones are committed, so a later run continues from there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig
    from kosbert_ray.corpus.fragments import Fragment
    from kosbert_ray.run.executors.base import Pending

ROW_BYTES = 200  # of a short Korean text with an id; where the rows of a fragment are not known

Bound = Literal["", "limit", "max_minutes"]


@dataclass(frozen=True)
class Bounds:
    """When a run ends although slices are open.

    Attributes:
        limit: rows in the output after which it ends; None for no limit.
        seconds: seconds after which it ends; None for no limit.
        started: when it began, by ``time.monotonic``.
    """

    limit: int | None = None
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(config: JobConfig) -> Bounds:
        """The bounds of a run that begins now."""
        return Bounds(config.limit, None if config.max_minutes is None else 60 * config.max_minutes)

    def reached(self, rows: int) -> Bound:
        """The bound that is reached, if one is.

        Args:
            rows: rows in the output.
        """
        if self.limit is not None and rows >= self.limit:
            return "limit"
        if self.seconds is not None and time.monotonic() - self.started >= self.seconds:
            return "max_minutes"
        return ""

    def first(self, pending: Pending, rows: int) -> Pending:
        """The first open fragments, about as many as it takes to reach the limit; at least one.

        Args:
            pending: the open fragments.
            rows: rows in the output.
        """
        if self.limit is None:
            return pending
        sums = accumulate(expected_rows(item) for item, _ in pending)
        count = next((number for number, total in enumerate(sums, 1) if rows + total >= self.limit), len(pending))
        return pending[:count]

    def share(self, fragments: list[Fragment]) -> float:
        """The part of some fragments that the limit leaves to be done, from 0 to 1."""
        if self.limit is None:
            return 1.0
        return min(1.0, self.limit / max(1, sum(map(expected_rows, fragments))))


def expected_rows(fragment: Fragment) -> int:
    """Rows of a fragment; an estimate where they are not known."""
    if fragment.row_groups is not None:
        return fragment.stop - fragment.start
    return max(1, fragment.input_bytes // ROW_BYTES)
