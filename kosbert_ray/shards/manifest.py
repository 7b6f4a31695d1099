"""Manifests and _SUCCESS: the contents of an output at the end of each complete run.

``_kosbert/manifests/NNNNNN.RUN.parquet`` holds the receipts of all shards in the output when that run completed. _SUCCESS
names the latest manifest and exists only while the output is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.ledger_files import UNREADABLE, LedgerFiles
from kosbert_ray.shards.receipt import Receipt

MANIFEST_FOLDER = "_kosbert/manifests"
SUCCESS_FILE = "_SUCCESS"


def manifest_name(number: int, run: str) -> str:
    """Returns the name of a run's manifest. Number 0 stands for manifests of version 0.1.0, which have no number."""
    return f"{MANIFEST_FOLDER}/{f'{number:06d}.' if number else ''}{run}.parquet"


def read_success(files: LedgerFiles) -> dict[str, Any] | None:
    """Reads _SUCCESS. Returns None if the output is not complete or the file is broken."""
    success = files.read_json(SUCCESS_FILE)
    if success and not isinstance(success.get("manifest"), str):
        files.broken[SUCCESS_FILE] = "it names no manifest"
        return None
    return success or None


def list_manifests(files: LedgerFiles) -> list[tuple[int, str]]:
    """Lists the manifests as pairs of number and run, oldest first. Numbers set the order, since clocks may be wrong."""
    manifests = []
    for name in files.tables(MANIFEST_FOLDER):
        stem = name.rpartition("/")[2].removesuffix(".parquet")
        number, dot, run = stem.partition(".")
        manifests.append((int(number), run) if dot and number.isdigit() else (0, stem))
    return sorted(manifests)


def read_manifest(files: LedgerFiles, name: str) -> list[Receipt]:
    """Reads a manifest.

    Raises:
        StorageError: it is missing or broken.
    """
    with _readable(files, name):
        return files.read_receipts(name)


def read_shards(files: LedgerFiles, name: str) -> frozenset[str]:
    """Reads the names of a manifest's shards; raises StorageError like :func:`read_manifest`."""
    with _readable(files, name):
        table = pq.read_table(pa.BufferReader(files.storage.read(name)), columns=["shard"])
        return frozenset(filter(None, table["shard"].to_pylist()))


@contextlib.contextmanager
def _readable(files: LedgerFiles, name: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise StorageError(
            f"{files.storage.url(name)}: the manifest is missing or broken ({first_line(error)}); run kosbert-ray embed "
            "again to recreate it"
        ) from error


def write_manifest(files: LedgerFiles, run: str, receipts: list[Receipt], totals: Mapping[str, Any]) -> None:
    """Writes the manifest of a complete output, then _SUCCESS with the totals and the manifest's name."""
    name = manifest_name(_claim_number(files, run), run)
    files.write_receipts(name, receipts)
    files.write_json(SUCCESS_FILE, {"run": run, "manifest": name, **totals})


def _claim_number(files: LedgerFiles, run: str) -> int:
    """Reserves the next manifest number, so that no other run can use it."""
    names = [entry.name.rpartition("/")[2] for entry in files.storage.list(MANIFEST_FOLDER)]
    used = [int(head) for name in names if (head := name.partition(".")[0]).isdigit()]
    number = max(used, default=0) + 1
    while not files.storage.create(f"{MANIFEST_FOLDER}/{number:06d}.claim", run.encode()):
        number += 1
    return number
