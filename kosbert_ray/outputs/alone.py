"""One writer at a time for an output and a destination."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator

from kosbert_ray.errors import JobFailed
from kosbert_ray.shards.lease import Lease
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.units import duration

LOADS_FOLDER = "_kosbert/loads"  # a lease for each destination that is written to
WAIT_SECONDS = 10.0  # for another writer to give up


@contextlib.contextmanager
def alone(ledger: Ledger, address: str, name: str, what: str) -> Iterator[None]:
    """Holds the lease of an output and a destination.

    Args:
        ledger: of the output.
        address: the destination, for messages.
        name: identifies it among those at the address.
        what: is done: "load".

    Raises:
        JobFailed: another process holds the lease.
    """
    place = hashlib.sha256(f"{address}\n{name}".encode()).hexdigest()[:16]
    lease = Lease(ledger.storage, ledger.run, f"{LOADS_FOLDER}/{place}")
    with lease:
        deadline = time.monotonic() + WAIT_SECONDS
        while others := lease.others():
            first = min(others, key=lambda other: (other.started, other.run))
            # The older of two waits until the younger has given up. One that began before it could be seen continues.
            if (first.started, first.run) < (lease.started, ledger.run) or time.monotonic() > deadline:
                raise JobFailed(
                    f"{address}: another {what} of this output is running (on {first.host}, process {first.pid}, "
                    f"started {duration(first.age)} ago); wait for it, or end it first"
                )
            time.sleep(0.2)
        yield
