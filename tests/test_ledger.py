"""The output's books: presence commits, receipts only help, and another job's output is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from kosbert_ray.errors import FingerprintMismatch, StorageError
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import write_shard
from kosbert_ray.storage import Storage

FINGERPRINT = Fingerprint(
    weights="w" * 64,
    tokenizer="t" * 64,
    pooling=("mean",),
    head=(),
    max_seq_length=512,
    do_lower_case=False,
    prompt="",
    long_text="truncate",
    precision="auto",
    dtype=("float32",),
    ranges=(),
    list_type="list",
    dimension=4,
    column="embedding",
    text="text",
    normalize=(),
    keep=("id: int64",),
    input_format="x",
    on_bad_row="reject",
    max_rows=10,
    max_bytes=100,
)
RECEIPT = Receipt(
    shard="a.00000-00000.12345678.parquet",
    file="a.parquet",
    version="v",
    fragment="f0",
    fragment_index=0,
    slice_index=0,
    last=True,
    rows=3,
    rejected=1,
    distinct=2,
    tokens=30,
    encoded_tokens=20,
    truncated=1,
    dropped_tokens=7,
    input_bytes=99,
    embedding_xxh128="",
    output_bytes=0,
    precision="fp32",
    attention="packed",
    device="cpu",
    node="here",
)


def commit(storage: Storage, receipt: Receipt = RECEIPT, fingerprint: Fingerprint = FINGERPRINT) -> None:
    footer = receipt.footer() | {"fingerprint": fingerprint.sha256}
    vectors = EmbeddingFormat(4).array(np.zeros((receipt.rows, 4), np.float32))
    write_shard(storage, receipt.shard, {}, [vectors], [EmbeddingFormat(4)], footer)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_an_output_is_claimed_once_joined_after_and_refused_to_another_job(storage: Storage) -> None:
    assert Ledger(storage).open_job(FINGERPRINT, {"a": 1})
    assert not Ledger(storage).open_job(FINGERPRINT, {"a": 2})
    other = replace(FINGERPRINT, weights="x" * 64, max_seq_length=128, keep=())
    with pytest.raises(FingerprintMismatch) as raised:
        Ledger(storage).open_job(other, {})
    for field in ("weights", "max_seq_length: 512 → 128", 'keep: ["id: int64"] → []'):
        assert field in str(raised.value)
    assert "tokenizer" not in str(raised.value)


def test_every_field_of_the_fingerprint_changes_its_digest() -> None:
    changed = {name: (f"{value}!" if isinstance(value, str) else ("!",)) for name, value in asdict(FINGERPRINT).items()}
    digests = {replace(FINGERPRINT, **{name: value}).sha256 for name, value in changed.items()}
    assert len(digests | {FINGERPRINT.sha256}) == len(changed) + 1


def test_a_receipt_is_told_again_from_the_shard_when_it_was_lost(storage: Storage) -> None:
    commit(storage)
    ledger = Ledger(storage)
    (receipt,) = ledger.committed(FINGERPRINT).receipts(["f0"])
    size = storage.entry(RECEIPT.shard).size
    assert receipt == replace(RECEIPT, node="", output_bytes=size)
    ledger.flush()
    assert Ledger(storage).committed(FINGERPRINT).receipts(["f0"]) == [receipt]
    assert len(storage.list("_kosbert/receipts")) == 1


def test_a_broken_receipts_file_costs_a_look_into_the_shards_and_no_more(storage: Storage) -> None:
    commit(storage)
    storage.write_atomic("_kosbert/receipts/broken.parquet", b"PAR1")
    storage.write_atomic("_kosbert/receipts/empty", b"")
    assert Ledger(storage).committed(FINGERPRINT).complete("f0")


def test_a_receipt_without_its_shard_counts_for_nothing(storage: Storage) -> None:
    ledger = Ledger(storage)
    ledger.add(RECEIPT)
    ledger.flush()
    assert not Ledger(storage).committed(FINGERPRINT).by_fragment
    commit(storage)
    assert Ledger(storage).committed(FINGERPRINT).complete("f0")


def test_shards_of_another_job_and_foreign_files_are_not_ours(storage: Storage) -> None:
    commit(storage, fingerprint=replace(FINGERPRINT, prompt="other"))
    storage.write_atomic("notes.parquet", b"not parquet")
    renamed = storage.read(RECEIPT.shard)
    storage.write_atomic("b.00000-00000.12345678.parquet", renamed)
    assert not Ledger(storage).committed(FINGERPRINT).by_fragment


def test_a_fragment_is_complete_when_all_slices_up_to_its_last_are_there() -> None:
    committed = Committed()
    for index in (0, 2):
        committed.add(replace(RECEIPT, slice_index=index, last=index == 2))
    assert not committed.complete("f0")
    assert committed.done("f0") == {0, 2}
    committed.add(replace(RECEIPT, slice_index=1, last=False))
    assert committed.complete("f0")
    assert not committed.complete("f1")


def test_finishing_leaves_totals_and_a_manifest_and_starting_takes_success_away(storage: Storage) -> None:
    ledger = Ledger(storage)
    assert ledger.success() is None
    ledger.finish([RECEIPT], {"rows": 3})
    success = Ledger(storage).success()
    assert success is not None
    assert success["rows"] == 3
    assert storage.exists(success["manifest"])
    ledger.start()
    assert ledger.success() is None


def test_a_broken_job_file_is_named(storage: Storage) -> None:
    storage.write_atomic("_kosbert/job.json", b"{")
    with pytest.raises(StorageError, match=r"job\.json: broken JSON"):
        Ledger(storage).open_job(FINGERPRINT, {})
    storage.write_atomic("_kosbert/job.json", json.dumps({"fingerprint": asdict(FINGERPRINT)}).encode())
    assert not Ledger(storage).open_job(FINGERPRINT, {})
