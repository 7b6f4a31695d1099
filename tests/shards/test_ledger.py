"""A shard's presence commits its slice, receipts only save time, and another job's output is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from receipts import FINGERPRINT, RECEIPT, commit

from kosbert_ray.config import load_config
from kosbert_ray.errors import FingerprintMismatch, StorageError
from kosbert_ray.shards.fingerprint import Fingerprint, mismatch
from kosbert_ray.shards.lease import Lease
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.shard import REJECTED_FOLDER, REJECTED_SCHEMA, write_rejected
from kosbert_ray.storage import Storage


def stored(fingerprint: Fingerprint) -> dict:
    """Returns the fields as read from job.json."""
    return json.loads(json.dumps(fingerprint.described()))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_the_first_job_claims_an_output_and_only_the_same_job_may_join_it(storage: Storage) -> None:
    assert Ledger(storage).claim(FINGERPRINT, {"a": 1}) == FINGERPRINT.sha256
    commit(storage)
    assert Ledger(storage).claim(FINGERPRINT, {"a": 2}) == FINGERPRINT.sha256
    other = replace(FINGERPRINT, weights="x" * 64, max_seq_length=128, keep=())
    with pytest.raises(FingerprintMismatch) as raised:
        Ledger(storage).claim(other, {})
    for field in ("model.name is ", "model.max_seq_length is 512 in the output but 128 in this job", "input.keep is"):
        assert field in str(raised.value)
    assert "--set" not in str(raised.value), "no single setting makes it the same job"
    with pytest.raises(FingerprintMismatch, match="add --set encoder.precision=auto, or choose another output"):
        Ledger(storage).claim(replace(FINGERPRINT, precision="bf16"), {})
    assert Ledger(storage).job()["config"] == {"a": 1}


@pytest.mark.parametrize(
    "same",
    [{"max_rows": 99}, {"max_bytes": 9}, {"keep": ("id: int32",)}],
    ids=lambda change: next(iter(change)),
)
def test_a_change_that_affects_no_vector_keeps_the_job(storage: Storage, same: dict) -> None:
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    assert Ledger(storage).claim(replace(FINGERPRINT, **same), {}) == FINGERPRINT.sha256


def test_another_version_of_the_sentence_splitter_keeps_the_job() -> None:
    ours = replace(FINGERPRINT, long_text="chunk size=64 overlap=8 kiwipiepy 0.22.0")
    theirs = stored(replace(ours, long_text="chunk size=64 overlap=8 kiwipiepy 0.20.1"))
    assert ours.differences(theirs) == []
    assert ours.differences(theirs | {"long_text": "chunk size=32 overlap=8 kiwipiepy 0.20.1"})


def test_the_weights_hash_of_0_1_0_identifies_the_same_model() -> None:
    theirs = stored(replace(FINGERPRINT, weights="old"))
    assert FINGERPRINT.differences(theirs)
    assert FINGERPRINT.differences(theirs, {"old"}) == []


def test_a_claim_without_commits_is_replaced_unless_its_run_is_active(storage: Storage) -> None:
    other = replace(FINGERPRINT, prompt="other")
    first = Ledger(storage)
    first.claim(other, {})
    with Lease(storage, first.run), pytest.raises(FingerprintMismatch):
        Ledger(storage).claim(FINGERPRINT, {})
    assert Ledger(storage).claim(FINGERPRINT, {}) == FINGERPRINT.sha256
    with pytest.raises(FingerprintMismatch, match="another job has claimed this output since the run began"):
        first.require_claim(other.sha256)
    first.require_claim(FINGERPRINT.sha256)
    commit(storage)
    with pytest.raises(FingerprintMismatch):
        Ledger(storage).claim(other, {})


def test_receipts_of_another_job_are_ignored(storage: Storage) -> None:
    commit(storage)
    ledger = Ledger(storage)
    ledger.add(replace(RECEIPT, fingerprint="another", rows=99))
    ledger.flush()
    assert [receipt.rows for receipt in Ledger(storage).committed(FINGERPRINT.sha256).all()] == [3]


def test_the_first_claim_survives_a_store_that_ignores_write_conditions(storage: Storage) -> None:
    """A proxy may drop If-None-Match, so that the second create replaces the first."""

    class Ignoring(Storage):
        def create(self, name: str, content: bytes) -> bool:
            self.write_atomic(name, content)
            return True

    careless = Ignoring(storage.address)
    Ledger(careless).claim(FINGERPRINT, {})
    commit(careless)
    with pytest.raises(FingerprintMismatch):
        Ledger(careless).claim(replace(FINGERPRINT, dimension=2), {})
    assert Ledger(careless).job()["fingerprint"]["dimension"] == 4


def test_every_field_of_the_fingerprint_changes_its_digest() -> None:
    changed = {name: (f"{value}!" if isinstance(value, str) else ("!",)) for name, value in asdict(FINGERPRINT).items()}
    digests = {replace(FINGERPRINT, **{name: value}).sha256 for name, value in changed.items()}
    assert len(digests | {FINGERPRINT.sha256}) == len(changed) + 1


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            {"sparse_top_k": 20},
            {"sparse_top_k": 30},
            "sparse_top_k is 20 in the output but 30 in this job; add --set {}=20",
        ),
        ({}, {"sparse_top_k": 30}, "sparse_top_k is null in the output but 30 in this job; add --set {}=null"),
        ({"sparse_top_k": 20}, {}, "sparse_top_k is 20 in the output but null in this job; add --set {}=20"),
        ({"sparse_threshold": 0.5}, {}, "sparse_threshold is 0.5 in the output but 0.0 in this job; add --set {}=0.5"),
        (
            {},
            {"sparse_dtype": "float16"},
            "sparse_dtype is float32 in the output but float16 in this job; add --set {}=float32",
        ),
        ({}, {"token_pooling": 2.0}, "token_pooling is 1.0 in the output but 2.0 in this job; add --set {}=1.0"),
        ({"multi_vector_dtype": "float16"}, {"multi_vector_dtype": "float32"}, "add --set {}=float16"),
    ],
)
def test_an_option_of_a_kind_that_differs_is_named_with_its_remedy(theirs: dict, ours: dict, message: str) -> None:
    stored = json.loads(json.dumps(asdict(replace(FINGERPRINT, **theirs))))
    said = mismatch(replace(FINGERPRINT, **ours).differences(stored))
    (option,) = {*theirs, *ours}
    assert f"{message.format(f'output.{option}')}, or choose another output" in said
    value = said.partition("--set ")[2].partition(",")[0]
    load_config(None, [value])  # the remedy is accepted


def test_a_lost_receipt_is_restored_from_the_shards_footer(storage: Storage) -> None:
    commit(storage)
    ledger = Ledger(storage)
    (receipt,) = ledger.committed(FINGERPRINT.sha256).receipts(["f0"])
    size = storage.entry(RECEIPT.shard).size
    assert receipt == replace(RECEIPT, node="", output_bytes=size, fingerprint=FINGERPRINT.sha256)
    ledger.flush()
    assert Ledger(storage).committed(FINGERPRINT.sha256).receipts(["f0"]) == [receipt]
    assert len(storage.list("_kosbert/receipts")) == 1


def test_slices_in_a_broken_receipts_file_are_found_in_the_shards(storage: Storage) -> None:
    commit(storage)
    storage.write_atomic("_kosbert/receipts/broken.parquet", b"PAR1")
    storage.write_atomic("_kosbert/receipts/empty", b"")
    assert Ledger(storage).committed(FINGERPRINT.sha256).complete("f0")


def test_a_receipt_without_its_shard_is_ignored(storage: Storage) -> None:
    ledger = Ledger(storage)
    ledger.add(RECEIPT)
    ledger.flush()
    assert not Ledger(storage).committed(FINGERPRINT.sha256).by_fragment
    commit(storage)
    assert Ledger(storage).committed(FINGERPRINT.sha256).complete("f0")


def test_shards_of_another_job_and_foreign_files_are_ignored(storage: Storage) -> None:
    commit(storage, fingerprint=replace(FINGERPRINT, prompt="other"))
    storage.write_atomic("notes.parquet", b"not parquet")
    renamed = storage.read(RECEIPT.shard)
    storage.write_atomic("b.00000-00000.12345678.parquet", renamed)
    assert not Ledger(storage).committed(FINGERPRINT.sha256).by_fragment


def test_a_fragment_is_complete_once_all_slices_up_to_its_last_are_committed() -> None:
    committed = Committed()
    for index in (0, 2):
        committed.add(replace(RECEIPT, slice_index=index, last=index == 2))
    assert not committed.complete("f0")
    assert committed.done("f0") == {0, 2}
    committed.add(replace(RECEIPT, slice_index=1, last=False))
    assert committed.complete("f0")
    assert not committed.complete("f1")


def test_finish_writes_totals_and_a_manifest_and_start_removes_success(storage: Storage) -> None:
    ledger = Ledger(storage)
    assert ledger.success() is None
    ledger.finish([RECEIPT], {"rows": 3})
    success = Ledger(storage).success()
    assert success is not None
    assert success["rows"] == 3
    assert storage.exists(success["manifest"])
    ledger.start({})
    assert ledger.success() is None


BAD = [b"", b"null", b"{}", b"[]", b"{", b"\xff\xfe\x00", b'{"sha256": 3}', b"[" * 100_000]


@pytest.mark.parametrize("content", BAD)
def test_a_broken_job_file_is_reported_and_only_the_same_job_replaces_it(storage: Storage, content: bytes) -> None:
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    storage.write_atomic("_kosbert/job.json", content)
    with pytest.raises(StorageError, match=r"job\.json: broken JSON"):
        Ledger(storage).job()
    with pytest.raises(StorageError, match="belongs to a different job than this command describes"):
        Ledger(storage).claim(replace(FINGERPRINT, prompt="other"), {})
    ledger = Ledger(storage)
    assert ledger.claim(FINGERPRINT, {}) == FINGERPRINT.sha256
    assert Ledger(storage).job()["sha256"] == FINGERPRINT.sha256
    assert len(storage.list("_kosbert/set_aside")) == 1


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"fingerprint": {}}, {"config": None}, {"config": 3}])
def test_a_job_file_with_a_corrupted_value_is_broken_rather_than_another_job(storage: Storage, change: dict) -> None:
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    storage.write_atomic("_kosbert/job.json", json.dumps(Ledger(storage).job() | change).encode())
    ledger = Ledger(storage)
    assert ledger.read_job() == {}
    assert ledger.claim(FINGERPRINT, {}) == FINGERPRINT.sha256
    assert Ledger(storage).job()["config"] == {}


def test_only_their_own_job_joins_shards_without_a_job_file(storage: Storage) -> None:
    commit(storage)
    with pytest.raises(
        StorageError, match=r"job\.json: cannot be read \(it does not exist\), and .* belongs to a different job"
    ):
        Ledger(storage).claim(replace(FINGERPRINT, prompt="other"), {})
    assert Ledger(storage).claim(FINGERPRINT, {}) == FINGERPRINT.sha256


@pytest.mark.parametrize("content", BAD)
def test_a_broken_success_file_counts_as_missing(storage: Storage, content: bytes) -> None:
    storage.write_atomic("_SUCCESS", content)
    ledger = Ledger(storage)
    assert ledger.success() is None
    assert ledger.manifest() is None
    assert len(ledger.notices) == 1


def foreign_table() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("content", [b"", b"PAR1", foreign_table(), foreign_table()[:-9]])
def test_broken_receipts_and_manifests_are_restored_from_footers(storage: Storage, content: bytes) -> None:
    Ledger(storage).claim(FINGERPRINT, {})
    commit(storage)
    ledger = Ledger(storage)
    ledger.add(RECEIPT)
    ledger.finish([RECEIPT], {"rows": 3})
    success = ledger.success()
    assert success is not None
    (receipts,) = (entry.name for entry in storage.list("_kosbert/receipts"))
    storage.write_atomic(receipts, content)
    storage.write_atomic(success["manifest"], content)
    again = Ledger(storage)
    assert again.committed(FINGERPRINT.sha256).complete("f0")
    assert [receipt.shard for receipt in again.manifest() or []] == [RECEIPT.shard]
    assert len(again.notices) == 2
    again.set_aside_broken()
    assert not storage.exists(receipts)


def test_a_lost_or_truncated_file_of_rejected_rows_is_detected(storage: Storage) -> None:
    commit(storage)
    ledger = Ledger(storage)
    committed = ledger.committed(FINGERPRINT.sha256)
    lost = list(committed.all())
    assert ledger.lost_rejected(committed) == lost
    write_rejected(storage, RECEIPT.shard, REJECTED_SCHEMA.empty_table())
    assert ledger.lost_rejected(committed) == []
    storage.write_atomic(f"{REJECTED_FOLDER}/{RECEIPT.shard}", b"PAR1 cut")
    assert ledger.lost_rejected(committed) == lost


def test_manifests_are_ordered_by_number_rather_than_by_a_hosts_clock(storage: Storage) -> None:
    for run in ("20991231T000000-ahead", "20010101T000000-behind", "20260101T000000-right"):
        ledger = Ledger(storage)
        ledger.run = run
        ledger.finish([RECEIPT], {"rows": 3})
    storage.write_atomic("_kosbert/manifests/20981231T000000-first.parquet", b"as named by 0.1.0")
    assert [run.partition("-")[2] for run in Ledger(storage).manifests()] == ["first", "ahead", "behind", "right"]
    assert Ledger(storage).manifest_of("20010101T000000-behind") == [RECEIPT]
