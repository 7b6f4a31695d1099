"""The ledger of an output directory: the job it belongs to, the slices committed in it, and whether it is complete.

A slice is committed once its shard exists under its final name. Receipts only save opening shards: a lost receipt costs
reading a footer, and a receipt without its shard is ignored.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from kosbert_ray.errors import FingerprintMismatch, StorageError, first_line
from kosbert_ray.shards import job_file, receipt_files
from kosbert_ray.shards.committed import Committed
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.job_file import JOB_FILE
from kosbert_ray.shards.ledger_files import LedgerFiles
from kosbert_ray.shards.manifest import (
    SUCCESS_FILE,
    list_manifests,
    manifest_name,
    read_manifest,
    read_shards,
    read_success,
    write_manifest,
)
from kosbert_ray.shards.published import Publications
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_FOLDER
from kosbert_ray.storage import Storage

__all__ = ["JOB_FILE", "Committed", "Ledger"]

RUNS_FOLDER = "_kosbert/runs"
CLUSTERS_FOLDER = "_clusters"


class Ledger:
    """The ledger of one output directory, written by the driver of one run.

    Broken files never stop a run: ``notices`` names them, and :meth:`set_aside_broken` moves them out of the way.

    Args:
        storage: the output directory.

    Attributes:
        run: id of this run.
        lost: shards named by the manifest that do not exist; set by :meth:`held`.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.lost: list[str] = []
        self._files = LedgerFiles(storage)
        self._receipts = receipt_files.ReceiptBuffer(self._files)

    @cached_property
    def publications(self) -> Publications:
        """Tables that the output is published as."""
        return Publications(self._files)

    @property
    def broken(self) -> Mapping[str, str]:
        """Names of unreadable files, with the reason."""
        return self._files.broken

    @property
    def notices(self) -> list[str]:
        """Messages for the user: one for each broken file, and one for missing shards."""
        lines = [f"{self.storage.url(name)}: cannot be read ({reason})" for name, reason in self.broken.items()]
        if self.lost:
            first = self.storage.url(self.lost[0])
            lines.append(
                f"{first}: missing ({len(self.lost):,} missing shards in all); run kosbert-ray embed to recreate them"
            )
        return lines

    def set_aside_broken(self) -> None:
        """Moves broken files into ``_kosbert/set_aside``, to make room for new ones."""
        self._files.set_aside_broken(self.run)

    # -- the job ---------------------------------------------------------------------------------------------------

    def claim(
        self,
        fingerprint: Fingerprint,
        config: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        same_weights: Collection[str] = (),
    ) -> str:
        """Claims the output for this job, or joins the job that it belongs to.

        The claim of another job is replaced if that job committed nothing and its run is no longer active.

        Args:
            fingerprint: this job's fingerprint.
            config: this job's options, for job.json.
            more: further content of job.json.
            same_weights: other digests of the same weights; see :meth:`Fingerprint.differences`.

        Returns:
            The digest in job.json, which identifies the job in footers and shard names.

        Raises:
            FingerprintMismatch: the output belongs to a job that gives different vectors; the message names the options
                that differ.
            StorageError: job.json is missing or broken, and the shards belong to another job.
        """
        return job_file.claim(self._files, self.run, fingerprint, config, more or {}, same_weights)

    def join(self, fingerprint: Fingerprint, same_weights: Collection[str] = ()) -> str | None:
        """Does the same as :meth:`claim` without writing; returns None where it would replace another job's claim."""
        return job_file.join(self._files, self.run, fingerprint, same_weights)

    def require_claim(self, digest: str) -> None:
        """Checks that job.json still has this digest. Another job may have replaced a claim that had committed nothing.

        Raises:
            FingerprintMismatch: it has another digest, or cannot be read.
        """
        job = self.read_job()
        if JOB_FILE in self.broken or (job or {}).get("sha256") != digest:
            raise FingerprintMismatch(
                f"{self.storage.url()}: another job has claimed this output since the run began; choose another output"
            )

    def is_abandoned(self, job: Mapping[str, Any]) -> bool:
        """True if nothing was committed under this job.json and no other run is active."""
        return job_file.is_abandoned(self._files, self.run, job)

    def job(self) -> dict[str, Any]:
        """Reads job.json. Returns an empty dict if there is none.

        Raises:
            StorageError: it is broken.
        """
        return job_file.require_readable_job(self._files)

    def read_job(self) -> dict[str, Any] | None:
        """Reads job.json. Returns None if there is none, and an empty dict if it is broken."""
        return job_file.read_job(self._files)

    # -- committed slices ------------------------------------------------------------------------------------------

    def committed(self, digest: str) -> Committed:
        """Finds the committed slices of the job ``digest``, from a listing and the receipts.

        Shards without a receipt are read from their footers. Files of other jobs or programs, and broken ones, are
        ignored and left in place.
        """
        committed, recovered = receipt_files.read_committed(self._files, digest)
        for receipt in recovered:
            self._receipts.add(receipt)
        return committed

    def lost_rejected(self, committed: Committed) -> list[Receipt]:
        """Returns the slices whose file of rejected rows is missing or truncated; only recomputing them restores it."""
        return receipt_files.lost_rejected(self.storage, committed)

    def receipts(self) -> dict[str, Receipt]:
        """Reads the receipts, by shard. Some of the shards may be gone."""
        return {receipt.shard: receipt for receipt in receipt_files.read_receipts(self._files) if receipt.shard}

    def receipts_of(self, run: str) -> list[Receipt]:
        """Reads the receipts of one run."""
        return receipt_files.read_receipts(self._files, run)

    def each_shard(self) -> Iterator[str]:
        """Yields the names of Parquet files in the output without waiting for the whole listing of a disk."""
        return self._files.each_shard()

    def shards(self) -> dict[str, int]:
        """Lists every Parquet file in the output; returns its size in bytes by name."""
        return self._files.shards()

    # -- complete outputs ------------------------------------------------------------------------------------------

    def success(self) -> dict[str, Any] | None:
        """Reads _SUCCESS. Returns None if the output is not complete or the file is broken."""
        return read_success(self._files)

    def manifest(self) -> list[Receipt] | None:
        """Reads the manifest of a complete output. Returns None if the output is not complete.

        If the manifest is missing or broken but all shards exist, it is reconstructed from receipts and footers.

        Raises:
            StorageError: the manifest is missing or broken, and so are some of its shards.
        """
        success = self.success()
        if success is None:
            return None
        try:
            return read_manifest(self._files, success["manifest"])
        except StorageError as error:
            digest = (self.read_job() or {}).get("sha256")
            committed, _ = receipt_files.read_committed(self._files, str(digest))
            receipts = list(committed.all())
            if sum(receipt.rows for receipt in receipts) != success.get("rows"):
                raise
            self._files.broken[success["manifest"]] = str(error.__cause__ and first_line(error.__cause__))
            return receipts

    def held(self) -> list[Receipt]:
        """Returns the receipts of all existing shards of this job: those in the manifest, or those committed so far.

        Other files in the folder are ignored.

        Raises:
            StorageError: job.json is broken, or the manifest and one of its shards are missing or broken.
        """
        receipts, shards = self.manifest(), self.shards()
        if receipts is None:
            committed, _ = receipt_files.read_committed(self._files, str(self.job().get("sha256")))
            retired = self.publications.retired
            receipts = [receipt for receipt in committed.all() if receipt.shard not in retired]
        self.lost = [receipt.shard for receipt in receipts if receipt.shard and receipt.shard not in shards]
        return [receipt for receipt in receipts if receipt.shard in shards]

    def manifests(self) -> list[str]:
        """Lists the ids of the runs that completed the output, oldest first."""
        return [run for _, run in list_manifests(self._files)]

    def manifest_of(self, run: str) -> list[Receipt]:
        """Reads the manifest of a run, the contents of the output when it ended.

        Raises:
            StorageError: the manifest is missing or broken.
        """
        return read_manifest(self._files, manifest_name(self.number_of(run), run))

    def shards_of(self, run: str) -> frozenset[str]:
        """Reads the names of the shards in a run's manifest; raises StorageError like :meth:`manifest_of`."""
        return read_shards(self._files, manifest_name(self.number_of(run), run))

    def number_of(self, run: str) -> int:
        """The number of a run's manifest; 0 for version 0.1.0, which had none."""
        return next((number for number, other in list_manifests(self._files) if other == run), 0)

    def runs_numbered(self, number: int) -> list[str]:
        """Lists the runs whose manifest has this number, newest first: one, or all of version 0.1.0 for 0."""
        return [run for other, run in reversed(list_manifests(self._files)) if other == number]

    # -- during a run ----------------------------------------------------------------------------------------------

    def start(self, account: Mapping[str, Any]) -> None:
        """Records the start of a run that will change the output, and marks the output as incomplete.

        Args:
            account: a record of this run: its options, addresses and library versions.
        """
        self._files.write_json(f"{RUNS_FOLDER}/{self.run}.json", account)
        self.storage.delete([SUCCESS_FILE])

    def last_run(self) -> dict[str, Any] | None:
        """The record of the latest run that changed the output; None if there is none that can be read."""
        names = sorted((entry.name for entry in self.storage.list(RUNS_FOLDER)), reverse=True)
        return next(filter(None, map(self._files.read_json, names)), None)

    def add(self, receipt: Receipt) -> None:
        """Adds the receipt of a committed slice. Receipts are written in batches, at most ``FLUSH_SECONDS`` apart."""
        self._receipts.add(receipt)
        if self._receipts.due:
            self.flush()

    def flush(self) -> None:
        """Writes the receipts that are not written yet."""
        self._receipts.flush(self.run)

    def remove(self, receipts: Iterable[Receipt]) -> None:
        """Deletes shards whose input has changed, or retires them if the output is published as a table."""
        names = [receipt.shard for receipt in receipts if receipt.shard]
        if self.publications.tables:
            self.publications.retire(self.run, names)
        else:
            self.delete([*names, *self.publications.retired])
            self.publications.drop(self.publications.records)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes shards, with their rejected rows and cluster labels."""
        folders = ("", f"{REJECTED_FOLDER}/", f"{CLUSTERS_FOLDER}/")
        self.storage.delete([f"{folder}{name}" for name in names for folder in folders])

    def finish(self, receipts: list[Receipt], totals: Mapping[str, Any]) -> None:
        """Marks the output as complete: writes its manifest, then _SUCCESS."""
        self.flush()
        write_manifest(self._files, self.run, receipts, totals)
