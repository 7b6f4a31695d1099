"""An active run holds a lease, and leases of dead runs are ignored."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from kosbert_ray.shards import lease as leases
from kosbert_ray.shards.lease import EXPIRY_SECONDS, LEASES_FOLDER, Holder, Lease, holders
from kosbert_ray.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def leave(storage: Storage, run: str, host: str, pid: int, beat: float) -> None:
    holder = Holder(run, host, pid, time.time() - 1000, time.time() - beat)
    storage.write_atomic(f"{LEASES_FOLDER}/{run}.json", json.dumps(asdict(holder)).encode())
    os.utime(storage.path(f"{LEASES_FOLDER}/{run}.json"), (time.time() - beat,) * 2)


def test_active_runs_see_each_other_and_leave_no_lease_behind(storage: Storage) -> None:
    with Lease(storage, "first") as first:
        assert first.others() == []
        with Lease(storage, "second") as second:
            (other,) = second.others()
            assert (other.run, other.host, other.pid) == ("first", socket.gethostname(), os.getpid())
            assert other.age < 10
        assert first.others() == []
    assert not storage.list(LEASES_FOLDER)


def test_leases_of_dead_runs_are_removed(storage: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(storage, "dead-here", socket.gethostname(), gone.pid, beat=1)
    leave(storage, "dead-there", "elsewhere", 1, beat=EXPIRY_SECONDS + 1)
    leave(storage, "alive-there", "elsewhere", 1, beat=EXPIRY_SECONDS / 2)
    storage.write_atomic(f"{LEASES_FOLDER}/half.json", b'{"run": "ha')
    # The clock of this host is a day ahead; the store's clock counts.
    leave(storage, "dead-ahead", "elsewhere", 1, beat=EXPIRY_SECONDS + 1)
    ahead = json.loads(storage.read(f"{LEASES_FOLDER}/dead-ahead.json")) | {"heartbeat": time.time() + 86400}
    path = storage.path(f"{LEASES_FOLDER}/dead-ahead.json")
    Path(path).write_text(json.dumps(ahead))
    os.utime(path, (time.time() - EXPIRY_SECONDS - 1,) * 2)
    assert [other.run for other in Lease(storage, "me").others()] == ["alive-there"]
    assert {Path(entry.name).name for entry in storage.list(LEASES_FOLDER)} == {"alive-there.json", "half.json"}


def test_a_held_lease_renews_its_heartbeat(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    with Lease(storage, "me") as lease:
        before = json.loads(storage.read(lease.name))
        time.sleep(0.5)
        after = json.loads(storage.read(lease.name))
    assert after["heartbeat"] > before["heartbeat"]
    assert after["started"] == before["started"]


@pytest.mark.parametrize(
    "change", [{"pid": "x"}, {"pid": 10**30}, {"pid": None}, {"heartbeat": None}, {"host": 1, "started": [2]}]
)
def test_a_damaged_lease_is_ignored(storage: Storage, change: dict) -> None:
    with Lease(storage, "first") as first:
        content = json.loads(storage.read(first.name))
        storage.write_atomic(f"{LEASES_FOLDER}/second.json", json.dumps(content | change).encode())
        storage.write_atomic(f"{LEASES_FOLDER}/third.json", b"[" * 100_000)
        assert [holder.run for holder in holders(storage)] == ["first"]
