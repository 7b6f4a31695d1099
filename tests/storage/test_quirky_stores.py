"""S3-compatible stores that lack features of AWS: each is replaced by other requests, in bounded time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import S3
from quirky_store import REFUSALS, QuirkyStore
from receipts import FINGERPRINT, RECEIPT, commit

from kosbert_ray.errors import FingerprintMismatch
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.storage import Storage, StorageOptions

Open = Callable[..., Storage]


@pytest.fixture
def open_store(s3: S3) -> Iterator[Open]:
    """Returns a function that opens a new bucket in a store with the given quirks."""
    with contextlib.ExitStack() as stack:

        def run(*quirks: str) -> Storage:
            store = QuirkyStore(s3, *quirks)
            stack.callback(store.close)
            bucket = f"quirk-{time.monotonic_ns()}"
            s3.filesystem().mkdir(bucket)
            options = StorageOptions(
                endpoint_url=store.endpoint,
                region="us-east-1",
                access_key_id="admin",
                secret_access_key="secret",
                retry_seconds=5.0,
            )
            return Storage(f"s3://{bucket}/결과", options)

        yield run


def test_the_proxy_adds_no_quirk(open_store: Open) -> None:
    storage = open_store()
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.replace("a", b"3", b"1")
    assert not storage.replace("a", b"4", b"1")
    assert storage.read("a") == b"3"
    assert abs((storage.modified("a") or 0) - time.time()) < 60


@pytest.mark.parametrize("quirk", REFUSALS)
def test_a_store_without_conditional_writes_is_read_before_each_write(open_store: Open, quirk: str) -> None:
    storage = open_store(quirk)
    started = time.monotonic()
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a") == b"1"
    assert storage.replace("a", b"3", b"1")
    assert not storage.replace("a", b"4", b"1")
    assert storage.read("a") == b"3"
    assert time.monotonic() - started < 5, "an unsupported request is not retried"


@pytest.mark.parametrize("quirk", ["ignores_conditions", *REFUSALS])
def test_an_output_belongs_to_its_first_job_even_if_the_store_lacks_conditional_writes(
    open_store: Open, quirk: str
) -> None:
    storage = open_store(quirk)
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    with pytest.raises(FingerprintMismatch):
        Ledger(storage).claim(type(FINGERPRINT)(**{**vars(FINGERPRINT), "prompt": "other"}), {})
    assert json.loads(storage.read(JOB_FILE))["sha256"] == FINGERPRINT.sha256


def test_a_store_without_bulk_deletes_deletes_files_one_by_one(open_store: Open) -> None:
    storage = open_store("no_bulk_delete")
    for name in ("x/a", "x/y/b", "z"):
        storage.write_atomic(name, b"1")
    storage.delete_folder("x")
    assert [entry.name for entry in storage.list(recursive=True)] == ["z"]


def test_files_are_created_on_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, SMB and FUSE mounts reject link(2), as simulated here."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = Storage(str(tmp_path))
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a") == b"1"
    assert not storage.list("_kosbert/tmp")


def test_shards_missing_from_a_stale_listing_are_found(open_store: Open, tmp_path: Path) -> None:
    storage = open_store("stale_listings")
    storage.write_atomic("before", b"1")
    assert [entry.name for entry in storage.list()] == ["before"]
    commit(storage)
    assert [entry.name for entry in storage.list()] == ["before"], "the listing is stale"
    assert storage.missing([RECEIPT.shard, "nothing"]) == ["nothing"]
