"""Who is writing to an output: one small file a run with a heartbeat. Advisory: two runs at once only repeat work."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage, process_alive

LEASES_FOLDER = "_kosbert/leases"
HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0


@dataclass(frozen=True)
class Holder:
    """A run that writes to the output.

    Times are Unix seconds: ``started`` by the clock of its host, ``heartbeat`` by the store's.
    """

    run: str
    host: str
    pid: int
    started: float
    heartbeat: float

    @property
    def age(self) -> float:
        """Seconds since it started."""
        return max(0.0, time.time() - self.started)

    @property
    def alive(self) -> bool:
        """Whether it is still at work, as far as one can tell: by its process on this host, else by its heartbeat."""
        if self.host == socket.gethostname() and not process_alive(self.pid):
            return False
        return abs(time.time() - self.heartbeat) < EXPIRY_SECONDS


def holders(storage: Storage) -> list[Holder]:
    """The runs at work on an output; nothing is changed."""
    return [holder for _, holder in _read(storage) if holder.alive]


def _read(storage: Storage) -> Iterator[tuple[str, Holder]]:
    """Every lease; its heartbeat is when the store says that it was written, which no host's clock can spoil."""
    for entry in storage.list(LEASES_FOLDER):
        # just given up, half-written, or damaged
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            said = json.loads(storage.read(entry.name))
            holder = Holder(
                str(said["run"]), str(said["host"]), int(said["pid"]), float(said["started"]), float(said["heartbeat"])
            )
            written = storage.modified(entry.name)
            yield entry.name, holder if written is None else replace(holder, heartbeat=written)


class Lease:
    """A run's claim, held while the ``with`` block runs.

    Args:
        storage: the output directory.
        run: the run's own name.
    """

    def __init__(self, storage: Storage, run: str) -> None:
        self.storage = storage
        self.name = f"{LEASES_FOLDER}/{run}.json"
        now = time.time()
        self._holder = Holder(run, socket.gethostname(), os.getpid(), now, now)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")

    def others(self) -> list[Holder]:
        """The other runs at work on this output; the leases of the dead are removed."""
        there = {name: holder for name, holder in _read(self.storage) if name != self.name}
        self.storage.delete([name for name, holder in there.items() if not holder.alive])
        return [holder for holder in there.values() if holder.alive]

    def __enter__(self) -> Lease:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(HEARTBEAT_SECONDS)
        with contextlib.suppress(StorageError):
            self.storage.delete([self.name])

    def _write(self) -> None:
        self.storage.write_atomic(self.name, json.dumps(asdict(self._holder) | {"heartbeat": time.time()}).encode())

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(StorageError):  # a late heartbeat harms nobody
                self._write()
