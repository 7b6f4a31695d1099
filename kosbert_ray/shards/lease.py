"""Leases: each active run keeps a small file with a heartbeat in its output.

Leases are advisory. Two runs on one output are safe, but they duplicate work.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage, process_alive

LEASES_FOLDER = "_kosbert/leases"
HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0


@dataclass(frozen=True)
class LiveReport:
    """The progress of a run, as of its last heartbeat.

    Attributes:
        share: share of the input's bytes that is committed.
        rows: rows committed by this run.
        rows_per_second, tokens_per_second: of the last minute.
        seconds_left: by that rate; None before the first slice.
        doing: what the run waits for.
    """

    share: float
    rows: int
    rows_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    doing: str


@dataclass(frozen=True)
class Holder:
    """A run that holds a lease.

    Attributes:
        run: id of the run.
        host: name of its host.
        pid: its process.
        started: Unix time in seconds, by the clock of its host.
        heartbeat: Unix time of its last heartbeat in seconds, by the clock of the store.
        executor: the executor of its pass, once that is chosen.
        live: its progress; None before it knows what there is to do, and for runs of earlier versions.
    """

    run: str
    host: str
    pid: int
    started: float
    heartbeat: float
    executor: str = ""
    live: LiveReport | None = None

    @property
    def age(self) -> float:
        """Seconds since the run started."""
        return max(0.0, time.time() - self.started)

    @property
    def alive(self) -> bool:
        """True if the run is still active, judged by its process if it is on this host and by its heartbeat."""
        if self.host == socket.gethostname() and not process_alive(self.pid):
            return False
        return abs(time.time() - self.heartbeat) < EXPIRY_SECONDS


def holders(storage: Storage) -> list[Holder]:
    """Returns the active runs of an output."""
    return [holder for _, holder in _read(storage) if holder.alive]


def _read(storage: Storage, folder: str = LEASES_FOLDER) -> Iterator[tuple[str, Holder]]:
    """Reads the leases as pairs of file name and holder.

    The heartbeat is the file's modification time as the store reports it, which does not depend on the hosts' clocks.
    """
    for entry in storage.list(folder):
        # just released, half-written, or damaged
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            lease = json.loads(storage.read(entry.name))
            holder = Holder(
                str(lease["run"]),
                str(lease["host"]),
                int(lease["pid"]),
                float(lease["started"]),
                float(lease["heartbeat"]),
                str(lease.get("executor", "")),
                _live(lease.get("live")),
            )
            written = storage.modified(entry.name)
            yield entry.name, holder if written is None else replace(holder, heartbeat=written)


def _live(found: Any) -> LiveReport | None:
    """The progress in a lease; None if there is none or a later version wrote other fields."""
    try:
        report = LiveReport(**found)
        numbers = (report.share, report.rows, report.rows_per_second, report.tokens_per_second, report.seconds_left or 0)
        return (
            report if all(isinstance(number, int | float) for number in numbers) and isinstance(report.doing, str) else None
        )
    except TypeError:
        return None


class Lease:
    """A context manager that holds a run's lease and renews it in a background thread.

    Args:
        storage: the output directory.
        run: id of the run.
        folder: where the leases are.

    Attributes:
        dead: runs that ended without releasing their lease; set by :meth:`others`.
        report: gives the progress to write with each heartbeat.
    """

    def __init__(self, storage: Storage, run: str, folder: str = LEASES_FOLDER) -> None:
        self.storage = storage
        self._folder, self.name = folder, f"{folder}/{run}.json"
        now = time.time()
        self._holder = Holder(run, socket.gethostname(), os.getpid(), now, now)
        self.dead: list[Holder] = []
        self.report: Callable[[], LiveReport | None] = lambda: None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")

    def others(self) -> list[Holder]:
        """Returns the other active runs of this output, and removes the leases of dead ones."""
        leases = {name: holder for name, holder in _read(self.storage, self._folder) if name != self.name}
        alive = {name: holder for name, holder in leases.items() if holder.alive}
        self.dead = [holder for name, holder in leases.items() if name not in alive]
        self.storage.delete([name for name in leases if name not in alive])
        return [*alive.values()]

    @property
    def started(self) -> float:
        """Unix time in seconds."""
        return self._holder.started

    def record_executor(self, name: str) -> None:
        """Adds the executor of the pass that begins."""
        if self._holder.executor != name:
            self._holder = replace(self._holder, executor=name)
            self._write()

    def __enter__(self) -> Lease:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(HEARTBEAT_SECONDS)
        with contextlib.suppress(StorageError):
            self.storage.delete([self.name])

    def _write(self) -> None:
        holder = replace(self._holder, heartbeat=time.time(), live=self.report())
        self.storage.write_atomic(self.name, json.dumps(asdict(holder)).encode())

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(StorageError):  # the next heartbeat makes up for it
                self._write()
