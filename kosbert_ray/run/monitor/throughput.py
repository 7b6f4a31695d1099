"""Throughput over the last minute, and the bottleneck."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kosbert_ray.shards.receipt import STAGES, Receipt

if TYPE_CHECKING:
    from kosbert_ray.run.monitor.board import View

WINDOW_SECONDS = 60.0
STEADY_LOOKS = 10  # snapshots, of one second each
MIN_RECEIPTS = 8  # large slices may finish less than once a minute
BUSY = 0.9  # encoders with work this much of the time are the bottleneck
WAITING_FOR = {"read": "input", "tokenize": "tokenizing", "encode": "an encoder", "write": "output"}  # by stage
# What encoders may wait for, and the likely remedy.
REASONS = {
    "nothing": "the hardware's limit",
    "input": "the store is slow, or too few CPUs read",
    "tokenizing": "more CPUs would help",
    "output": "the store is slow to accept shards",
    "end": "the last slices are being encoded",
    "resources": "no encoder has been placed in the cluster yet",
    "model": "encoders are loading the model",
}


class Recent:
    """Receipts of the last minute, or the last eight if that is more, counted from the start of the first slice."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()  # start of the window
        self._receipts: deque[tuple[float, Receipt]] = deque()

    def add(self, receipt: Receipt) -> None:
        """Records a committed slice."""
        now = self._clock()
        if not self._receipts:  # exclude the start of the cluster and the loading of models
            self._since = max(self._since, now - sum(getattr(receipt, f"{stage}_seconds") for stage in STAGES))
        self._receipts.append((now, receipt))
        while len(self._receipts) > MIN_RECEIPTS and self._receipts[0][0] < now - WINDOW_SECONDS:
            self._since = self._receipts.popleft()[0]

    def __len__(self) -> int:
        return len(self._receipts)

    def total(self, name: str) -> float:
        """Sums a field of the receipts."""
        return float(sum(getattr(receipt, name) for _, receipt in self._receipts))

    def rate(self, name: str, view: View | None = None) -> float:
        """The sum per second.

        Args:
            name: of a field of receipts.
            view: a snapshot, to count the encoded parts of open slices, too.
        """
        doing = [item for item in (view.doing if view else ()) if item.part]
        parts = sum(getattr(item.part, name) for item in doing)
        # Before the first commit, from the start of the oldest open slice.
        since = self._since if self._receipts else self._clock() - max((item.seconds for item in doing), default=0.0)
        return (self.total(name) + parts) / max(1e-9, self._clock() - since) if parts or self._receipts else 0.0

    @property
    def busy(self) -> float:
        """Share of time in which encoders had work."""
        worked, waited = self.total("encode_seconds"), self.total("wait_seconds")
        return worked / (worked + waited) if worked else 0.0

    @property
    def fill(self) -> float:
        """Share of the computed tokens that were not padding."""
        computed = self.total("computed_tokens")
        return self.total("encoded_tokens") / computed if computed else 0.0


class Occupancy:
    """Share of encoders that had work in the last minute, from snapshots of the workers."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque(maxlen=int(WINDOW_SECONDS))

    def add(self, view: View) -> None:
        """Records a snapshot; call it once a second. Those before an encoder is ready do not count."""
        if view.encoders_ready:
            at = sum(doing.stage == "encode" for doing in view.doing)
            self._looks.append((min(at, view.encoders_ready), view.encoders_ready))

    @property
    def busy(self) -> float | None:
        """The share; None in the first seconds, when encoders wait for their first slices."""
        if len(self._looks) < STEADY_LOOKS:
            return None
        return sum(at for at, _ in self._looks) / sum(ready for _, ready in self._looks)


def waiting_for(view: View, busy: float) -> str:
    """Finds what encoders wait for: a key of ``REASONS``.

    Args:
        view: a snapshot of the workers.
        busy: share of time in which encoders had work.
    """
    if not view.encoders_ready:
        return "model" if view.encoders_starting else "resources"
    if busy >= BUSY:
        return "nothing"
    at = Counter(WAITING_FOR[doing.stage] for doing in view.doing)
    if {*at} == {"an encoder"}:  # nothing is left to be read
        return "end"
    return max(("input", "tokenizing", "output"), key=lambda reason: at[reason])


def bottleneck(view: View, busy: float | None) -> str:
    """Describes the bottleneck: ``encoders 97% busy``, or what encoders wait for and what would help.

    Args:
        view: a snapshot of the workers.
        busy: share of time in which encoders had work; None before the run is in a steady state.
    """
    if busy is None and view.encoders_ready:
        stages = Counter(doing.stage for doing in view.doing)
        return (
            f"first slices: {', '.join(f'{stages[stage]} in {stage}' for stage in STAGES if stages[stage]) or 'none yet'}"
        )
    reason = waiting_for(view, busy or 0.0)
    if reason == "nothing":
        return f"encoders {busy:.0%} busy: {REASONS[reason]}"
    if reason == "end":
        return REASONS[reason]
    if reason in ("resources", "model"):
        return f"waiting: {REASONS[reason]}"
    return f"encoders {busy:.0%} busy, waiting for {reason}: {REASONS[reason]}"
