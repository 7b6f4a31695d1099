"""How a run goes just now: its rates over the last minute, and what holds its encoders up."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kosbert_ray.shards.receipt import Receipt

if TYPE_CHECKING:
    from kosbert_ray.run.monitor.board import View

WINDOW_SECONDS = 60.0  # what "now" means
MIN_RECEIPTS = 8  # of large slices there may be less than one a minute
BUSY = 0.9  # encoders that have work this much of the time wait for nothing
WAITING_FOR = {"read": "input", "tokenize": "tokenizing", "encode": "an encoder", "write": "output"}  # by stage
STAGES = tuple(WAITING_FOR)
# What encoders may wait for, and what to do about it.
REASONS = {
    "nothing": "the hardware's limit",
    "input": "the store is slow, or there are few CPUs to read",
    "tokenizing": "more CPUs would help",
    "output": "the store is slow to take shards",
    "resources": "the cluster has no place for an encoder yet",
    "model": "encoders load the model",
}


class Recent:
    """The receipts of the last minute, or the last eight if these are more; counted from the first slice's beginning on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()  # when the first of them began to count
        self._receipts: deque[tuple[float, Receipt]] = deque()

    def add(self, receipt: Receipt) -> None:
        """One more slice is committed."""
        now = self._clock()
        if not self._receipts:  # before it, the cluster started and models were loaded
            self._since = max(self._since, now - sum(getattr(receipt, f"{stage}_seconds") for stage in STAGES))
        self._receipts.append((now, receipt))
        while len(self._receipts) > MIN_RECEIPTS and self._receipts[0][0] < now - WINDOW_SECONDS:
            self._since = self._receipts.popleft()[0]

    def __len__(self) -> int:
        return len(self._receipts)

    def total(self, name: str) -> float:
        """The sum of a field of the receipts."""
        return float(sum(getattr(receipt, name) for _, receipt in self._receipts))

    def rate(self, name: str) -> float:
        """The same for each second."""
        return self.total(name) / max(1e-9, self._clock() - self._since)

    @property
    def busy(self) -> float:
        """Share of their time that encoders had work."""
        worked, waited = self.total("encode_seconds"), self.total("wait_seconds")
        return worked / (worked + waited) if worked else 0.0

    @property
    def fill(self) -> float:
        """Share of the computed tokens that were no padding."""
        computed = self.total("computed_tokens")
        return self.total("encoded_tokens") / computed if computed else 0.0


def waiting_for(view: View, busy: float) -> str:
    """What encoders wait for, of ``REASONS``: the stage before or after them that most workers are at.

    Args:
        view: what the board shows.
        busy: the share of the time that they had work.
    """
    if not view.encoders_ready:
        return "model" if view.encoders_starting else "resources"
    if busy >= BUSY:
        return "nothing"
    at = Counter(WAITING_FOR[doing.stage] for doing in view.doing)
    return max(("input", "tokenizing", "output"), key=lambda reason: at[reason])


def bottleneck(view: View, busy: float) -> str:
    """What holds the run up, for a person: ``encoders 97% busy``, or what they wait for and what would help."""
    reason = waiting_for(view, busy)
    if reason == "nothing":
        return f"encoders {busy:.0%} busy: {REASONS[reason]}"
    if reason in ("resources", "model"):
        return f"waiting: {REASONS[reason]}"
    return f"encoders {busy:.0%} busy, waiting for {reason}: {REASONS[reason]}"
