"""The output directory's books: whose it is, what is committed in it, and that it is complete.

A shard's presence under its final name is the commit; receipts only spare us from opening shards. So a lost receipt costs
a footer read, and a receipt without its shard counts for nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray._version import __version__
from kosbert_ray.errors import FingerprintMismatch, StorageError, first_line
from kosbert_ray.shards.fingerprint import Fingerprint, digest_of, mismatch
from kosbert_ray.shards.lease import holders
from kosbert_ray.shards.receipt import SCHEMA, Receipt, from_table, to_table
from kosbert_ray.shards.shard import REJECTED_FOLDER, read_metadata
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

JOB_FILE = "_kosbert/job.json"
RECEIPTS_FOLDER = "_kosbert/receipts"
MANIFEST_FOLDER = "_kosbert/manifests"
RUNS_FOLDER = "_kosbert/runs"
SET_ASIDE_FOLDER = "_kosbert/set_aside"
SUCCESS_FILE = "_SUCCESS"
CLAIM_TRIES = 8
PARQUET_MAGIC = b"PAR1"
BROKEN = (FileNotFoundError, pa.ArrowException, OSError, TypeError, ValueError)  # of a file of receipts
REQUIRED = {item.name for item in fields(Receipt) if item.default is MISSING}
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

    def cuts(self) -> dict[tuple[str, str], set[str]]:
        """By name and version of an input file, the cuts of its committed slices."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for receipt in self.all():
            found[receipt.file, receipt.version].add(receipt.cut)
        return found

    def versions(self) -> dict[str, set[str]]:
        """By name of an input file, the versions of which slices are committed."""
        found: dict[str, set[str]] = defaultdict(set)
        for receipt in self.all():
            found[receipt.file].add(receipt.version)
        return found

    def all(self) -> Iterator[Receipt]:
        """Every receipt."""
        for slices in self.by_fragment.values():
            yield from slices.values()

    def drop(self, receipt: Receipt) -> None:
        """Forgets a slice, so that it is done again."""
        self.by_fragment.get(receipt.fragment, {}).pop(receipt.slice_index, None)

    def receipts(self, fragments: Iterable[str]) -> list[Receipt]:
        """Receipts of these fragments, in their order."""
        return [receipt for fragment in fragments for _, receipt in sorted(self.by_fragment.get(fragment, {}).items())]


class Ledger:
    """The books of one output directory, kept by the driver of one run.

    A file that cannot be read (flipped bytes, written by another program) does not stop a run, because shard footers hold
    the same facts: it counts as missing, ``notices`` names it, and :meth:`set_aside_broken` moves it out of the way.

    Args:
        storage: the output directory.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.broken: dict[str, str] = {}  # files that cannot be read, with the reason
        self.lost: list[str] = []  # shards that a manifest names and that are not there, once held() has looked
        self._pending: list[Receipt] = []
        self._flushed_at = time.monotonic()
        self._files = 0

    @property
    def notices(self) -> list[str]:
        """One line for each file that cannot be read, and one for shards that are missing."""
        lines = [f"{self.storage.url(name)}: cannot be read ({reason})" for name, reason in self.broken.items()]
        if self.lost:
            where = self.storage.url(self.lost[0])
            lines.append(
                f"{where}: missing ({len(self.lost):,} shards of the manifest); run kosbert-ray embed to recreate them"
            )
        return lines

    def set_aside_broken(self) -> None:
        """Moves files that cannot be read into ``_kosbert/set_aside``, so that new ones take their place."""
        for name, reason in list(self.broken.items()):
            with contextlib.suppress(FileNotFoundError):
                self.storage.write_atomic(
                    f"{SET_ASIDE_FOLDER}/{self.run}.{name.replace('/', '.')}", self.storage.read(name)
                )
            self.storage.delete([name])
            self.broken[name] = f"{reason}; set aside"

    # -- whose output it is ----------------------------------------------------------------------------------------

    def claim(
        self,
        fingerprint: Fingerprint,
        config: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        same_weights: Collection[str] = (),
    ) -> str:
        """Claims the output for this job, or joins it.

        A claim of another job under which nothing was committed, and whose run is gone, is replaced.

        Args:
            fingerprint: the job's.
            config: its options, for job.json.
            more: what else job.json is to hold.
            same_weights: other digests of the same weights; see :meth:`Fingerprint.differences`.

        Returns:
            The output's digest: that of job.json, which names this job in footers and shard names.

        Raises:
            FingerprintMismatch: it belongs to a job that gives other vectors; the message names the options that differ.
            StorageError: job.json is lost or broken and the shards belong to another job.
        """
        job = {
            "format": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "kosbert_ray": __version__,
            "run": self.run,
            "sha256": fingerprint.sha256,
            "fingerprint": fingerprint.described(),
            "config": dict(config),
            **(more or {}),
        }
        content = json.dumps(job, indent=2, ensure_ascii=False).encode()
        for _ in range(CLAIM_TRIES):
            # Looked at before it is written: a store may ignore the condition of a conditional write.
            there = self.read_job()
            if there is None or JOB_FILE in self.broken:
                self._require_own_shards(fingerprint)
                if JOB_FILE in self.broken:
                    self.set_aside_broken()
                self.storage.create(JOB_FILE, content)
            else:
                differences = fingerprint.differences(there.get("fingerprint", {}), same_weights)
                if there.get("run") == self.run:
                    return str(there["sha256"])
                if not self.is_abandoned(there):
                    if not differences:
                        return str(there["sha256"])
                    raise FingerprintMismatch(f"{self.storage.url()} belongs to another job: {mismatch(differences)}")
                self.storage.replace(JOB_FILE, content, self.storage.read(JOB_FILE))
        raise StorageError(f"{self.storage.url(JOB_FILE)}: cannot be read back after it was written; is the store sound?")

    def join(self, fingerprint: Fingerprint, same_weights: Collection[str] = ()) -> str | None:
        """As :meth:`claim`, without a write; None where an abandoned claim would be replaced."""
        there = self.read_job()
        if not there:
            self._require_own_shards(fingerprint)
            return fingerprint.sha256
        differences = fingerprint.differences(there.get("fingerprint", {}), same_weights)
        if differences and not self.is_abandoned(there):
            raise FingerprintMismatch(f"{self.storage.url()} belongs to another job: {mismatch(differences)}")
        return None if differences else str(there["sha256"])

    def still_claimed(self, digest: str) -> bool:
        """Whether job.json is still the one with this digest: another job may have replaced an empty claim."""
        there = self.read_job()
        return JOB_FILE not in self.broken and (there or {}).get("sha256") == digest

    def is_abandoned(self, job: Mapping[str, Any]) -> bool:
        """Whether nothing was committed under this claim and no other run is at work."""
        if self.success() is not None or any(holder.run != self.run for holder in holders(self.storage)):
            return False
        digest = job.get("sha256")
        return not any((read_metadata(self.storage, name) or {}).get("fingerprint") == digest for name in self.shards())

    def _require_own_shards(self, fingerprint: Fingerprint) -> None:
        """Raises StorageError if job.json is lost or broken and a shard belongs to another job than this one."""
        reason = self.broken.get(JOB_FILE, "it does not exist")
        for name in self.shards():
            digest = (read_metadata(self.storage, name) or {}).get("fingerprint")
            if digest and digest != fingerprint.sha256:
                if self.read_job() and JOB_FILE not in self.broken:
                    return  # another run has just created it
                raise StorageError(
                    f"{self.storage.url(JOB_FILE)}: cannot be read ({reason}), and {name} is not of the job "
                    "that this command describes; restore job.json, repeat the options of the first run, or choose "
                    "another output"
                )

    def job(self) -> dict[str, Any]:
        """The content of job.json; empty if there is none.

        Raises:
            StorageError: it is broken.
        """
        job = self.read_job()
        if job is not None and JOB_FILE in self.broken:
            raise StorageError(
                f"{self.storage.url(JOB_FILE)}: broken JSON ({self.broken[JOB_FILE]}); run kosbert-ray embed with the "
                "options of the first run to recreate it"
            )
        return job or {}

    def read_job(self) -> dict[str, Any] | None:
        """job.json; None if there is none, empty (and among ``broken``) if it is broken."""
        self.broken.pop(JOB_FILE, None)
        content = self._read(JOB_FILE)
        if content is None:
            return None
        job = self._parsed(JOB_FILE, content)
        if job and (reason := _unsound(job)):
            self.broken[JOB_FILE] = reason
            return {}
        return job

    def _read(self, name: str) -> bytes | None:
        """A small file's content; None if there is none. One that is just being made (see Storage.create) is empty."""
        for pause in (0.05, 0.2, 0.0):
            try:
                content = self.storage.read(name)
            except FileNotFoundError:
                return None
            if content:
                break
            time.sleep(pause)
        return content

    def _parsed(self, name: str, content: bytes) -> dict[str, Any]:
        """A JSON object, empty (and among ``broken``) if it is none."""
        try:
            found = json.loads(content)
            if not isinstance(found, dict) or not found:
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:  # ValueError includes UnicodeDecodeError
            self.broken[name] = first_line(error)
            return {}
        return found

    def success(self) -> dict[str, Any] | None:
        """The content of _SUCCESS, if the output is complete; a broken one counts as none."""
        content = self._read(SUCCESS_FILE)
        success = {} if content is None else self._parsed(SUCCESS_FILE, content)
        if success and not isinstance(success.get("manifest"), str):
            self.broken[SUCCESS_FILE] = "it names no manifest"
            return None
        return success or None

    # -- what is committed -----------------------------------------------------------------------------------------

    def committed(self, digest: str) -> Committed:
        """Lists the output and the receipts; shards without a receipt are read from their footers.

        A file that is no shard of this job (another writer's, or broken) is left alone and counts for nothing.

        Args:
            digest: the job's.
        """
        shards = self.shards()
        committed = Committed()
        for receipt in self._read_receipts():
            if receipt.fingerprint not in ("", digest):
                continue
            if not receipt.shard or shards.pop(receipt.shard, None) is not None:
                committed.add(receipt)
        # The rest has no receipt: the driver died between the commit and its notice.
        for receipt in self._receipts_from_footers(shards, digest):
            committed.add(receipt)
            self._pending.append(receipt)
        return committed

    def _receipts_from_footers(self, shards: Mapping[str, int], digest: str) -> Iterator[Receipt]:
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            footers = pool.map(lambda name: read_metadata(self.storage, name), shards)
            for (name, size), footer in zip(shards.items(), footers, strict=True):
                if footer and footer.pop("fingerprint", None) == digest and footer.get("shard") == name:
                    with contextlib.suppress(TypeError):  # a footer that lacks a field
                        yield replace(Receipt.from_footer(footer, size), fingerprint=digest)

    def lost_rejected(self, committed: Committed) -> list[Receipt]:
        """Receipts whose file of rejected rows is gone or cut short: only their slices can make it again."""
        sizes = {entry.name: entry.size for entry in self.storage.list(REJECTED_FOLDER)}
        named = {f"{REJECTED_FOLDER}/{item.shard}": item for item in committed.all() if item.rejected and item.shard}
        there = {name: sizes[name] for name in named if name in sizes}
        ends = dict(zip(there, self.storage.read_ends(there, len(PARQUET_MAGIC)), strict=True))
        # An end that could not be read now is no proof of a loss.
        return [item for name, item in named.items() if name not in there or ends[name] not in (None, PARQUET_MAGIC)]

    def manifest(self) -> list[Receipt] | None:
        """Receipts of all that the complete output holds; None if it is not complete.

        A missing or broken manifest is reconstructed from receipts and footers if its shards are there.

        Raises:
            StorageError: the manifest is gone or broken, and shards that it named are gone too.
        """
        success = self.success()
        if success is None:
            return None
        try:
            return self._read_manifest(success["manifest"])
        except StorageError as error:
            digest = (self.read_job() or {}).get("sha256")
            receipts = list(self.committed(str(digest)).all())
            self._pending.clear()
            if sum(receipt.rows for receipt in receipts) != success.get("rows"):
                raise
            self.broken[success["manifest"]] = str(error.__cause__ and first_line(error.__cause__))
            return receipts

    def held(self) -> list[Receipt]:
        """Receipts of the shards that are there and of this job: of the manifest, or of what is committed so far.

        Foreign files in the folder are not among them.

        Raises:
            StorageError: job.json, or the manifest and a shard it names, is gone or broken.
        """
        manifest, there = self.manifest(), self.shards()
        if manifest is None:
            manifest = list(self.committed(str(self.job().get("sha256"))).all())
            self._pending.clear()
        self.lost = [receipt.shard for receipt in manifest if receipt.shard and receipt.shard not in there]
        return [receipt for receipt in manifest if receipt.shard in there]

    def manifests(self) -> list[str]:
        """Ids of the runs that have completed the output, the latest last."""
        return [run for _, run in sorted(self._manifests())]

    def manifest_of(self, run: str) -> list[Receipt]:
        """Receipts of all that the output held when that run ended; raises StorageError as :meth:`manifest` does."""
        number = next((number for number, other in self._manifests() if other == run), 0)
        return self._read_manifest(manifest_name(number, run))

    def _manifests(self) -> list[tuple[int, str]]:
        """Number and run of each manifest. The number orders them, not a host's clock; 0.1.0 had none."""
        found = []
        for entry in self.storage.list(MANIFEST_FOLDER):
            stem = entry.name.rpartition("/")[2]
            if stem.endswith(".parquet"):
                number, dot, run = stem.removesuffix(".parquet").partition(".")
                found.append((int(number), run) if dot and number.isdigit() else (0, stem.removesuffix(".parquet")))
        return found

    def _claim_number(self) -> int:
        """The next manifest's number, which no other run can get."""
        names = [entry.name.rpartition("/")[2] for entry in self.storage.list(MANIFEST_FOLDER)]
        taken = [int(head) for name in names if (head := name.partition(".")[0]).isdigit()]
        number = max(taken, default=0) + 1
        while not self.storage.create(f"{MANIFEST_FOLDER}/{number:06d}.claim", self.run.encode()):
            number += 1
        return number

    def _read_manifest(self, name: str) -> list[Receipt]:
        try:
            return self._read_table(name)
        except BROKEN as error:
            raise StorageError(
                f"{self.storage.url(name)}: the manifest is gone or broken ({first_line(error)}); run kosbert-ray embed "
                "again, which recreates it"
            ) from error

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
        except FileNotFoundError:
            return []
        except BROKEN as error:
            self.broken[name] = first_line(error)
            return []

    def _read_table(self, name: str) -> list[Receipt]:
        table = pq.read_table(io.BytesIO(self.storage.read(name)))
        if missing := REQUIRED - {*table.column_names}:
            raise ValueError(f"no receipts in it: no column {min(missing)}")
        table = table.select([column for column in SCHEMA.names if column in table.column_names])
        return from_table(
            table.cast(pa.schema([SCHEMA.field(column).with_nullable(True) for column in table.column_names]))
        )

    # -- while it runs ---------------------------------------------------------------------------------------------

    def start(self, said: Mapping[str, Any]) -> None:
        """The output is about to change: it is no longer complete.

        Args:
            said: what is to be remembered of this run: what was said, addresses, versions.
        """
        self.storage.write_atomic(f"{RUNS_FOLDER}/{self.run}.json", json.dumps(said, indent=2, ensure_ascii=False).encode())
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
        self.storage.write_atomic(name, to_parquet(table))

    # -- when it is done -------------------------------------------------------------------------------------------

    def remove(self, receipts: Iterable[Receipt]) -> None:
        """Deletes shards whose input has changed, with their rejected rows and their cluster labels."""
        names = [receipt.shard for receipt in receipts if receipt.shard]
        self.storage.delete([f"{folder}{name}" for name in names for folder in ("", f"{REJECTED_FOLDER}/", "_clusters/")])

    def finish(self, receipts: list[Receipt], totals: Mapping[str, Any]) -> None:
        """Writes the manifest of the complete output, then _SUCCESS with the totals and the manifest's name."""
        self.flush()
        manifest = manifest_name(self._claim_number(), self.run)
        self._write_table(manifest, to_table(receipts))
        success = {"run": self.run, "manifest": manifest, **totals}
        self.storage.write_atomic(SUCCESS_FILE, json.dumps(success, indent=2, ensure_ascii=False).encode())


def _unsound(job: Mapping[str, Any]) -> str:
    """Why the content of job.json cannot be used; empty if it can. A flipped digit must not pass for another job."""
    digest, fingerprint = job.get("sha256"), job.get("fingerprint")
    if not (isinstance(digest, str) and isinstance(fingerprint, dict)):
        return "it names no job"
    if digest != digest_of(fingerprint):
        return "its sha256 does not match its fingerprint"
    return "" if isinstance(job.get("config"), dict) else "it has no config"


def manifest_name(number: int, run: str) -> str:
    """Where a run's manifest is; number 0 is 0.1.0's, which had none."""
    return f"{MANIFEST_FOLDER}/{f'{number:06d}.' if number else ''}{run}.parquet"
