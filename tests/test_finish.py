"""A run is called complete only when every slice is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_ledger import RECEIPT

from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.plan import Limits, plan
from kosbert_ray.errors import JobFailed
from kosbert_ray.job.finish import Leftover, finish
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.storage import Storage


def test_a_slice_that_never_came_back_fails_the_run_and_leaves_no_success(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x\n" * 10)
    corpus = list_corpus(str(tmp_path / "in"))
    fragments = list(plan(corpus.files, Limits()))
    ledger = Ledger(Storage(str(tmp_path / "out")))
    committed = Committed()
    nothing = Leftover((), ())
    with pytest.raises(JobFailed, match=r"slices of 1 of 1 fragments were not committed \(the first of a.txt\)"):
        finish(ledger, committed, corpus, fragments, nothing, 1.0, print)
    assert ledger.success() is None
    committed.by_fragment[fragments[0].id][0] = RECEIPT
    with pytest.raises(JobFailed, match="gone since it was committed"):
        finish(ledger, committed, corpus, fragments, nothing, 1.0, print)
    ledger.storage.write_atomic(RECEIPT.shard, b"")
    finish(ledger, committed, corpus, fragments, nothing, 1.0, print)
    assert ledger.success() is not None
