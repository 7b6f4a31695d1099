"""Receipts of committed slices: reads them from ``_kosbert/receipts`` or shard footers, and writes them in batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kosbert_ray.errors import first_line
from kosbert_ray.shards.committed import Committed
from kosbert_ray.shards.ledger_files import UNREADABLE, LedgerFiles
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_FOLDER, read_metadata
from kosbert_ray.storage import Storage

RECEIPTS_FOLDER = "_kosbert/receipts"
READ_THREADS = 16
FLUSH_SECONDS = 10.0
FLUSH_RECEIPTS = 1000
PARQUET_MAGIC = b"PAR1"


class ReceiptBuffer:
    """Collects receipts and writes them as files of many.

    Args:
        files: the output directory.
    """

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files
        self._pending: list[Receipt] = []
        self._written = 0
        self._flushed_at = time.monotonic()

    def add(self, receipt: Receipt) -> None:
        """Adds a receipt, to be written with the next file."""
        self._pending.append(receipt)

    @property
    def due(self) -> bool:
        """True if it is time to write a file."""
        return len(self._pending) >= FLUSH_RECEIPTS or time.monotonic() - self._flushed_at > FLUSH_SECONDS

    def flush(self, run: str) -> None:
        """Writes the pending receipts, if any, as the next file of ``run``."""
        if self._pending:
            self._files.write_receipts(f"{RECEIPTS_FOLDER}/{run}.{self._written:06d}.parquet", self._pending)
            self._written += 1
            self._pending = []
        self._flushed_at = time.monotonic()


def read_receipts(files: LedgerFiles, run: str = "") -> list[Receipt]:
    """Reads all receipts, or those of one run. Their shards may be gone."""
    names = [name for name in files.tables(RECEIPTS_FOLDER) if name.rpartition("/")[2].startswith(run)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [receipt for receipts in pool.map(lambda name: _read_file(files, name), names) for receipt in receipts]


def _read_file(files: LedgerFiles, name: str) -> list[Receipt]:
    """Reads one file; returns an empty list if it is broken or was just removed."""
    try:
        return files.read_receipts(name)
    except FileNotFoundError:
        return []
    except UNREADABLE as error:
        files.broken[name] = first_line(error)
        return []


def read_committed(files: LedgerFiles, digest: str) -> tuple[Committed, list[Receipt]]:
    """Finds the committed slices of the job ``digest``; see :meth:`Ledger.committed`.

    Returns:
        The slices, and those among them whose receipts had to be read from shard footers.
    """
    shards = files.shards()
    committed = Committed()
    for receipt in read_receipts(files):
        if receipt.fingerprint not in ("", digest):
            continue
        if not receipt.shard or shards.pop(receipt.shard, None) is not None:
            committed.add(receipt)
    # The remaining shards have no receipt: the driver died between the commit and writing it.
    recovered = list(_from_footers(files.storage, shards, digest))
    for receipt in recovered:
        committed.add(receipt)
    return committed, recovered


def _from_footers(storage: Storage, shards: Mapping[str, int], digest: str) -> Iterator[Receipt]:
    """Reconstructs receipts from the footers of those ``shards`` (sizes by name) that belong to the job ``digest``."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        footers = pool.map(lambda name: read_metadata(storage, name), shards)
        for (name, size), footer in zip(shards.items(), footers, strict=True):
            if footer and footer.pop("fingerprint", None) == digest and footer.get("shard") == name:
                with contextlib.suppress(TypeError):  # a footer that lacks a field
                    yield replace(Receipt.from_footer(footer, size), fingerprint=digest)


def lost_rejected(storage: Storage, committed: Committed) -> list[Receipt]:
    """Returns the slices whose file of rejected rows is missing or truncated; only recomputing them restores it."""
    sizes = {entry.name: entry.size for entry in storage.list(REJECTED_FOLDER)}
    expected = {f"{REJECTED_FOLDER}/{item.shard}": item for item in committed.all() if item.rejected and item.shard}
    found = {name: sizes[name] for name in expected if name in sizes}
    ends = dict(zip(found, storage.read_ends(found, len(PARQUET_MAGIC)), strict=True))
    # None: the end could not be read just now, which does not prove a loss.
    return [item for name, item in expected.items() if name not in found or ends[name] not in (None, PARQUET_MAGIC)]
