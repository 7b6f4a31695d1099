"""The output directory's books: whose it is, what is committed in it, and that it is complete.

A shard's presence under its final name is the commit; receipts only spare us from opening shards. So a lost receipt costs
a footer read, and a receipt without its shard counts for nothing.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray import __version__
from kosbert_ray.errors import FingerprintMismatch, InputError, StorageError, first_line
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.receipt import SCHEMA, Receipt, from_table, to_table
from kosbert_ray.shards.shard import REJECTED_FOLDER, read_metadata
from kosbert_ray.storage import Storage

JOB_FILE = "_kosbert/job.json"
RECEIPTS_FOLDER = "_kosbert/receipts"
MANIFEST_FOLDER = "_kosbert/manifests"
SUCCESS_FILE = "_SUCCESS"
FLUSH_SECONDS = 10.0
FLUSH_RECEIPTS = 1000
FOOTER_THREADS = 16


@dataclass
class Committed:
    """What an output holds of one job: receipts by fragment id, then by slice index."""

    by_fragment: dict[str, dict[int, Receipt]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, receipt: Receipt) -> None:
        """Takes one receipt in."""
        self.by_fragment[receipt.fragment][receipt.slice_index] = receipt

    def done(self, fragment: str) -> frozenset[int]:
        """Indices of the fragment's committed slices."""
        return frozenset(self.by_fragment.get(fragment, ()))

    def complete(self, fragment: str) -> bool:
        """Whether all of the fragment's slices are committed: 0 to the one marked last."""
        slices = self.by_fragment.get(fragment, {})
        last = [index for index, receipt in slices.items() if receipt.last]
        return bool(last) and all(index in slices for index in range(last[0]))

    def receipts(self, fragments: Iterable[str]) -> list[Receipt]:
        """Receipts of these fragments, in their order."""
        return [receipt for fragment in fragments for _, receipt in sorted(self.by_fragment.get(fragment, {}).items())]


class Ledger:
    """The books of one output directory, kept by the driver of one run.

    Args:
        storage: the output directory.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self._pending: list[Receipt] = []
        self._flushed_at = time.monotonic()
        self._files = 0

    # -- whose output it is ----------------------------------------------------------------------------------------

    def open_job(self, fingerprint: Fingerprint, config: Mapping[str, Any]) -> bool:
        """Claims the output for this job, or joins it: True if it is new.

        Raises:
            FingerprintMismatch: it belongs to a job that gives other vectors; the message names the fields.
        """
        job = {
            "format": 1,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "kosbert_ray": __version__,
            "sha256": fingerprint.sha256,
            "fingerprint": asdict(fingerprint),
            "config": dict(config),
        }
        if self.storage.create(JOB_FILE, json.dumps(job, indent=2, ensure_ascii=False).encode()):
            return True
        theirs = self.job()
        differences = fingerprint.differences(theirs.get("fingerprint", {}))
        if differences:
            raise FingerprintMismatch(
                f"{self.storage.url()} belongs to another job ({'; '.join(differences)}); choose another output"
            )
        return False

    def job(self) -> dict[str, Any]:
        """The content of job.json; empty if there is none."""
        try:
            return dict(json.loads(self.storage.read(JOB_FILE)))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StorageError(f"{self.storage.url(JOB_FILE)}: broken JSON; restore it or choose another output") from error

    def success(self) -> dict[str, Any] | None:
        """The content of _SUCCESS, if the output is complete."""
        try:
            return dict(json.loads(self.storage.read(SUCCESS_FILE)))
        except (FileNotFoundError, ValueError):
            return None

    # -- what is committed -----------------------------------------------------------------------------------------

    def committed(self, fingerprint: Fingerprint) -> Committed:
        """Lists the output and the receipts; shards without a receipt are told from their footers.

        A file that is no shard of this job (another writer's, or broken) is left alone and counts for nothing.
        """
        shards = self.shards()
        committed = Committed()
        for receipt in self._read_receipts():
            if not receipt.shard or shards.pop(receipt.shard, None) is not None:
                committed.add(receipt)
        # What is left has no receipt: the driver died between the commit and its notice.
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            footers = pool.map(lambda name: read_metadata(self.storage, name), shards)
            for (name, size), footer in zip(shards.items(), footers, strict=True):
                if footer and footer.pop("fingerprint", None) == fingerprint.sha256 and footer.get("shard") == name:
                    receipt = Receipt.from_footer(footer, size)
                    committed.add(receipt)
                    self._pending.append(receipt)
        return committed

    def manifest(self) -> list[Receipt] | None:
        """Receipts of all that the complete output holds; None if it is not complete.

        Raises:
            StorageError: the manifest is gone or broken.
        """
        success = self.success()
        return None if success is None else self._read_manifest(str(success.get("manifest")))

    def complete_manifest(self) -> list[Receipt]:
        """As :meth:`manifest`, but raises InputError if the output is not complete."""
        manifest = self.manifest()
        if manifest is None:
            raise InputError(f"{self.storage.url()}: not complete (no _SUCCESS); run kosbert-ray embed to its end first")
        return manifest

    def manifests(self) -> list[str]:
        """Ids of the runs that have completed the output, the latest last."""
        names = [entry.name.rpartition("/")[2] for entry in self.storage.list(MANIFEST_FOLDER)]
        return sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))

    def manifest_of(self, run: str) -> list[Receipt]:
        """Receipts of all that the output held when that run ended; raises StorageError as :meth:`manifest` does."""
        return self._read_manifest(f"{MANIFEST_FOLDER}/{run}.parquet")

    def _read_manifest(self, name: str) -> list[Receipt]:
        try:
            return self._read_table(name)
        except (FileNotFoundError, pa.ArrowException) as error:
            raise StorageError(f"{self.storage.url(name)}: the manifest is gone or broken ({first_line(error)})") from error

    def receipts(self) -> dict[str, Receipt]:
        """What the receipts say, by shard; some of them may be gone by now."""
        return {receipt.shard: receipt for receipt in self._read_receipts() if receipt.shard}

    def receipts_of(self, run: str) -> list[Receipt]:
        """What the receipts of one run say."""
        return self._read_receipts(run)

    def shards(self) -> dict[str, int]:
        """Name and bytes of every Parquet file in the output: a listing."""
        return {entry.name: entry.size for entry in self.storage.list() if entry.name.endswith(".parquet")}

    def _read_receipts(self, run: str = "") -> list[Receipt]:
        files = (entry.name for entry in self.storage.list(RECEIPTS_FOLDER) if entry.name.endswith(".parquet"))
        names = [name for name in files if name.rpartition("/")[2].startswith(run)]
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            return [receipt for receipts in pool.map(self._read_receipts_file, names) for receipt in receipts]

    def _read_receipts_file(self, name: str) -> list[Receipt]:
        """None of them if the file is broken or just removed: the shards' footers tell the same."""
        try:
            return self._read_table(name)
        except (FileNotFoundError, pa.ArrowException):
            return []

    def _read_table(self, name: str) -> list[Receipt]:
        return from_table(pq.read_table(io.BytesIO(self.storage.read(name)), schema=SCHEMA))

    # -- while it runs ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The output is about to change: it is no longer complete."""
        self.storage.delete([SUCCESS_FILE])

    def add(self, receipt: Receipt) -> None:
        """Takes a receipt in; it reaches the disk within ``FLUSH_SECONDS`` if receipts keep coming."""
        self._pending.append(receipt)
        if len(self._pending) >= FLUSH_RECEIPTS or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one more receipts file."""
        if self._pending:
            self._write_table(f"{RECEIPTS_FOLDER}/{self.run}.{self._files:06d}.parquet", to_table(self._pending))
            self._files += 1
            self._pending = []
        self._flushed_at = time.monotonic()

    def _write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.storage.write_atomic(name, sink.getvalue())

    # -- when it is done -------------------------------------------------------------------------------------------

    def remove(self, receipts: Iterable[Receipt]) -> None:
        """Deletes shards whose input has changed, with their rejected rows."""
        names = [receipt.shard for receipt in receipts if receipt.shard]
        self.storage.delete([*names, *(f"{REJECTED_FOLDER}/{name}" for name in names)])

    def finish(self, receipts: list[Receipt], totals: Mapping[str, Any]) -> None:
        """Writes the manifest of the complete output, then _SUCCESS with the totals and the manifest's name."""
        self.flush()
        manifest = f"{MANIFEST_FOLDER}/{self.run}.parquet"
        self._write_table(manifest, to_table(receipts))
        success = {"run": self.run, "manifest": manifest, **totals}
        self.storage.write_atomic(SUCCESS_FILE, json.dumps(success, indent=2).encode())
