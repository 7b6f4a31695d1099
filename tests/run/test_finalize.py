"""A run is called complete only when every slice is there, and names what other runs have added meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from receipts import FINGERPRINT, RECEIPT, commit

from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.corpus.listing import Corpus, list_corpus
from kosbert_ray.corpus.plan import plan
from kosbert_ray.errors import FingerprintMismatch, JobFailed
from kosbert_ray.run.finalize import Leftover, finish, leftover
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.storage import Storage

NOTHING = Leftover((), ())


class Made:
    """A corpus of one file, an output that is claimed, and what is needed to finish it."""

    def __init__(self, folder: Path) -> None:
        (folder / "in").mkdir()
        (folder / "in" / "a.txt").write_text("x\n" * 10)
        self.corpus: Corpus = list_corpus(str(folder / "in"))
        self.fragments: list[Fragment] = list(plan(self.corpus.files, Limits()))
        self.ledger = Ledger(Storage(str(folder / "out")))
        self.digest = self.ledger.claim(FINGERPRINT, {})
        self.committed = Committed()

    def receipt(self, fragment: str, file: str = "a.txt", **more: object) -> Receipt:
        name = f"{file[0]}.00000-00000.{fragment[:8]}.parquet"
        return replace(RECEIPT, file=file, fragment=fragment, shard=name, rejected=0, fingerprint=self.digest, **more)

    def commit(self, receipt: Receipt) -> None:
        commit(self.ledger.storage, receipt)
        self.committed.add(receipt)

    def finish(self, leftover: Leftover = NOTHING, within_limit: bool = True) -> None:
        finish(self.ledger, self.digest, self.committed, self.corpus, self.fragments, leftover, within_limit, 1.0)

    def named(self) -> set[str]:
        return {receipt.shard for receipt in self.ledger.manifest() or []}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_slice_that_never_came_back_fails_the_run_and_leaves_no_success(made: Made) -> None:
    with pytest.raises(JobFailed, match=r"slices of 1 of 1 fragments were not committed \(the first of a.txt\)"):
        made.finish()
    assert made.ledger.success() is None
    receipt = made.receipt(made.fragments[0].id)
    made.committed.add(receipt)
    with pytest.raises(JobFailed, match="gone since it was committed"):
        made.finish()
    made.commit(receipt)
    made.finish()
    assert made.named() == {receipt.shard}


def test_more_rejected_rows_than_allowed_leave_no_success(made: Made) -> None:
    made.commit(made.receipt(made.fragments[0].id))
    made.finish(within_limit=False)
    assert made.ledger.success() is None


def test_what_a_newer_run_has_added_is_in_the_manifest_of_an_older_one_that_ends_last(made: Made) -> None:
    own = made.receipt(made.fragments[0].id)
    made.commit(own)
    theirs = made.receipt("b" * 64, "b.txt")
    commit(made.ledger.storage, theirs)
    half = made.receipt("c" * 64, "c.txt", last=False)
    commit(made.ledger.storage, half)
    made.finish()
    assert made.named() == {own.shard, theirs.shard}


def test_what_another_run_has_pruned_is_not_named(made: Made) -> None:
    own = made.receipt(made.fragments[0].id)
    made.commit(own)
    pruned, kept = made.receipt("b" * 64, "b.txt"), made.receipt("c" * 64, "c.txt")
    made.committed.add(pruned)
    made.commit(kept)
    made.finish(Leftover((), (pruned, kept)))
    assert made.named() == {own.shard, kept.shard}


def test_what_the_manifest_names_is_never_deleted(made: Made) -> None:
    own = made.receipt(made.fragments[0].id)
    made.commit(own)
    old = made.receipt("d" * 64)
    made.commit(old)
    made.finish(Leftover((old, own), ()))
    assert made.named() == {own.shard}
    assert {*made.ledger.shards()} == {own.shard}


def test_a_changed_file_without_rows_leaves_nothing_to_delete(made: Made) -> None:
    made.committed.add(replace(made.receipt("d" * 64), shard="", rows=0))
    assert leftover(made.committed, made.corpus, made.fragments, delete_removed=False) == NOTHING


def test_a_run_whose_claim_was_replaced_does_not_end_well(made: Made) -> None:
    made.commit(made.receipt(made.fragments[0].id))
    content = made.ledger.storage.read("_kosbert/job.json").replace(made.digest.encode(), b"0" * 64)
    made.ledger.storage.write_atomic("_kosbert/job.json", content)
    with pytest.raises(FingerprintMismatch, match="another job has claimed this output"):
        made.finish()
