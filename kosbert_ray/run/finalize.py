"""Finalize: checks the output against the plan, deletes shards of changed inputs, and writes _SUCCESS."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.errors import JobFailed
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.totals import Totals
from kosbert_ray.units import plural

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """Receipts of committed slices that are not in the plan.

    Attributes:
        delete: slices of changed files, and of removed files that were never read to the end.
        keep: slices of other removed files.
    """

    delete: tuple[Receipt, ...]
    keep: tuple[Receipt, ...]


def leftover(
    committed: Committed,
    corpus: Corpus,
    fragments: list[Fragment],
    delete_removed: bool,
    retired: Collection[str] = (),
) -> Leftover:
    """Finds committed slices that are not in the plan.

    Args:
        committed: the committed slices.
        corpus: the input as it is now.
        fragments: the plan.
        delete_removed: whether to delete the shards of removed files.
        retired: shards that an earlier run removed from the output, which tables still name.
    """
    planned = {fragment.id for fragment in fragments}
    files = {file.name for file in corpus.files}
    failed = tuple(file.name for file in corpus.failed)  # unreadable now: their committed slices stay
    below = tuple(f"{name}/" for name in failed)
    receipts = [
        receipt
        for fragment, slices in committed.by_fragment.items()
        if fragment not in planned
        for receipt in slices.values()
        if receipt.shard not in retired and not (receipt.file in failed or receipt.file.startswith(below))
    ]
    goes = [delete_removed or item.file in files or not committed.complete(item.fragment) for item in receipts]
    return Leftover(
        # A slice without rows has no shard, so its receipt must not make every run finalize the output again.
        delete=tuple(item for item, go in zip(receipts, goes, strict=True) if go and item.shard),
        keep=tuple(item for item, go in zip(receipts, goes, strict=True) if not go),
    )


def finish(
    ledger: Ledger,
    digest: str,
    committed: Committed,
    corpus: Corpus,
    fragments: list[Fragment],
    leftover: Leftover,
    within_limit: bool,
    seconds: float,
) -> None:
    """Deletes shards of changed inputs, now that all new ones are committed, and writes the manifest and _SUCCESS.

    The manifest includes slices that another run committed meanwhile for files that this run does not know.

    Args:
        ledger: the output's ledger.
        digest: the job's digest.
        committed: the committed slices.
        corpus: the input as it is now.
        fragments: the plan.
        leftover: committed slices that are not in the plan.
        within_limit: whether ``max_rejected`` allows the rejected rows; if not, nothing is marked complete.
        seconds: how long the run took.

    Raises:
        JobFailed: a slice was not committed, or its shard is gone.
        FingerprintMismatch: another job has claimed the output.
    """
    where = ledger.storage.url()
    ledger.require_claim(digest)
    missing = [fragment for fragment in fragments if not committed.complete(fragment.id)]
    if missing:
        raise JobFailed(
            f"{where}: slices of {len(missing):,} of {len(fragments):,} fragments were not committed "
            f"(the first of {missing[0].file.name}); run the same command again"
        )
    receipts = committed.receipts(fragment.id for fragment in fragments)
    ledger.flush()
    ledger.publications.reinstate({item.shard for item in receipts})  # before they are looked for
    there = ledger.shards()
    lost = ledger.storage.missing([item.shard for item in receipts if item.shard and item.shard not in there])
    if lost:
        raise JobFailed(
            f"{ledger.storage.url(lost[0])}: gone since it was committed "
            f"({plural(len(lost), 'shard')}); run the same command again"
        )
    if not within_limit:
        return
    unlisted = [item.shard for item in leftover.keep if item.shard and item.shard not in there]
    gone = set(ledger.storage.missing(unlisted))
    keep = [receipt for receipt in leftover.keep if receipt.shard not in gone]
    known = {receipt.shard for receipt in committed.all()}
    others = _of_other_runs(ledger, digest, committed, corpus) if there.keys() - known else []
    if keep:
        files = {receipt.file for receipt in keep}
        log.info(
            f"{plural(len(files), 'file', 'were')} removed from the input (the first: {min(files)}); "
            f"keeping {plural(len(keep), 'shard')} of them (output.removed_inputs=delete deletes these)"
        )
    named = {receipt.shard for receipt in (*receipts, *keep, *others)}
    ledger.remove(receipt for receipt in leftover.delete if receipt.shard not in named)
    ledger.storage.sweep()
    totals = asdict(Totals.of(receipts)) | {"files": len(corpus.files), "seconds": round(seconds, 3)}
    totals |= {"skipped_files": len(corpus.ignored), "skipped_endings": corpus.ignored_endings}
    ledger.finish([*receipts, *keep, *others], totals)


def _of_other_runs(ledger: Ledger, digest: str, committed: Committed, corpus: Corpus) -> list[Receipt]:
    """Slices that other runs committed since this run looked, of files that it does not know."""
    now = ledger.committed(digest)
    files = {file.name for file in corpus.files} | set(committed.versions())
    return [
        receipt
        for fragment, slices in now.by_fragment.items()
        if now.complete(fragment)
        for receipt in slices.values()
        if receipt.file not in files
    ]
