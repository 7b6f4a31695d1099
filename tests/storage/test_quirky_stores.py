"""Stores that are not AWS: what one of them cannot do is done in another way, in bounded time."""

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
    """Opens a bucket of its own through a store with some quirks."""
    with contextlib.ExitStack() as stack:

        def run(*quirks: str) -> Storage:
            store = QuirkyStore(s3, *quirks)
            stack.callback(store.close)
            bucket = f"quirk-{time.monotonic_ns()}"
            s3.filesystem().mkdir(bucket)
            options = StorageOptions(store.endpoint, "us-east-1", None, False, "admin", "secret", retry_seconds=5.0)
            return Storage(f"s3://{bucket}/결과", options)

        yield run


def test_the_proxy_itself_is_no_quirk(open_store: Open) -> None:
    storage = open_store()
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.replace("a", b"3", b"1")
    assert not storage.replace("a", b"4", b"1")
    assert storage.read("a") == b"3"
    assert abs((storage.modified("a") or 0) - time.time()) < 60


@pytest.mark.parametrize("quirk", REFUSALS)
def test_a_store_without_conditional_writes_is_looked_at_first(open_store: Open, quirk: str) -> None:
    storage = open_store(quirk)
    started = time.monotonic()
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a") == b"1"
    assert storage.replace("a", b"3", b"1")
    assert not storage.replace("a", b"4", b"1")
    assert storage.read("a") == b"3"
    assert time.monotonic() - started < 5, "what the store will never do is not tried again"


@pytest.mark.parametrize("quirk", ["ignores_conditions", *REFUSALS])
def test_an_output_belongs_to_its_first_job_whatever_the_store_makes_of_conditions(open_store: Open, quirk: str) -> None:
    storage = open_store(quirk)
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    with pytest.raises(FingerprintMismatch):
        Ledger(storage).claim(type(FINGERPRINT)(**{**vars(FINGERPRINT), "prompt": "other"}), {})
    assert json.loads(storage.read(JOB_FILE))["sha256"] == FINGERPRINT.sha256


def test_a_store_that_deletes_no_many_files_at_once_deletes_them_one_by_one(open_store: Open) -> None:
    storage = open_store("no_bulk_delete")
    for name in ("x/a", "x/y/b", "z"):
        storage.write_atomic(name, b"1")
    storage.delete_folder("x")
    assert [entry.name for entry in storage.list(recursive=True)] == ["z"]


def test_a_disk_without_hard_links_can_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, SMB and FUSE mounts refuse link(2); there is none of them here."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = Storage(str(tmp_path))
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a") == b"1"
    assert not storage.list("_kosbert/tmp")


def test_shards_that_a_stale_listing_does_not_show_are_not_lost(open_store: Open, tmp_path: Path) -> None:
    storage = open_store("stale_listings")
    storage.write_atomic("before", b"1")
    assert [entry.name for entry in storage.list()] == ["before"]
    commit(storage)
    assert [entry.name for entry in storage.list()] == ["before"], "the listing is a minute old"
    assert storage.missing([RECEIPT.shard, "nothing"]) == ["nothing"]
