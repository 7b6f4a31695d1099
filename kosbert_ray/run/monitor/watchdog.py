"""A thread of the driver that logs what a stalled run is waiting for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kosbert_ray.run.monitor.board import Board, View
from kosbert_ray.run.monitor.throughput import WAITING_FOR
from kosbert_ray.units import duration

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PLACE_SECONDS = 60.0  # after this long without a place in the cluster, an encoder is waiting for resources
RECENT_SECONDS = 60.0


class Watchdog:
    """Watches a run until the ``with`` block ends.

    Args:
        board: tracks the workers.
        resources: describes requested and free resources.
        stall_timeout: seconds without an outcome after which to log, and after which to log again.
    """

    def __init__(self, board: Board, resources: Callable[[], str], stall_timeout: float) -> None:
        self.board, self.resources, self.stall_timeout = board, resources, stall_timeout
        self._started = self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()

    def slice_finished(self) -> None:
        """Records that a slice was committed or failed."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        spoke = self._started
        placed = False
        while not self._end.wait(LOOK_SECONDS):
            now = time.monotonic()
            if not placed and now - self._started > PLACE_SECONDS:
                view = self.board.snapshot()
                placed = view is not None and bool(view.encoders_starting or view.encoders_ready)
                if view is not None and not placed and not self._end.is_set():
                    log.warning(f"no encoder has been placed in the cluster yet: {self.resources()}")
                    placed = True  # logged once; if it lasts, it is a stall
            if now - max(self._last, spoke) > self.stall_timeout:
                spoke = now
                line = describe(self.board.snapshot(), self.resources())
                if not self._end.is_set():
                    log.warning(f"nothing was committed for {duration(now - self._last)}: {line}")


def describe(view: View | None, resources: str) -> str:
    """Describes in one line what a run is waiting for.

    Args:
        view: a snapshot of the workers; None if the board does not answer.
        resources: requested and available resources.
    """
    if view is None:
        return "the cluster does not answer"
    parts = []
    trouble = [text for text, seconds in view.trouble.items() if seconds < RECENT_SECONDS]
    stages = {item.stage for item in view.doing}
    for stage, name in WAITING_FOR.items():
        doing = [item for item in view.doing if item.stage == stage]
        if doing:
            oldest = doing[0]
            parts.append(
                f"waiting for {name}: {oldest.what} on {oldest.host} for {duration(oldest.seconds)}"
                + (f" (and {len(doing) - 1} more)" if len(doing) > 1 else "")
            )
    if not view.encoders_ready and not view.encoders_starting:
        parts.append(f"resources for the encoders were never granted: {resources}")
    elif not view.encoders_ready:
        parts.append(f"waiting for {view.encoders_starting} encoders to load the model")
    elif not stages:
        parts.append(f"no worker is busy: Ray has not started the next task, or its process hangs ({resources})")
    return "; ".join(parts + trouble[-2:])
