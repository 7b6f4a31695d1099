"""The end of a run: the output is held against the plan, what the input no longer holds goes, and _SUCCESS is written."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.errors import FingerprintMismatch, JobFailed
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.totals import Totals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """Receipts of what the input no longer holds.

    ``delete``: of changed files, and of removed ones that were never read to their end. ``keep``: of other removed files.
    """

    delete: tuple[Receipt, ...]
    keep: tuple[Receipt, ...]


def leftover(committed: Committed, corpus: Corpus, fragments: list[Fragment], delete_removed: bool) -> Leftover:
    """What is committed and not in the plan.

    Args:
        committed: what the output holds.
        corpus: the input as it is now.
        fragments: the plan.
        delete_removed: whether the shards of files that are gone are to go too.
    """
    planned = {fragment.id for fragment in fragments}
    files = {file.name for file in corpus.files}
    failed = tuple(file.name for file in corpus.failed)  # of these nothing is known: what they gave before stays
    below = tuple(f"{name}/" for name in failed)
    receipts = [
        receipt
        for fragment, slices in committed.by_fragment.items()
        if fragment not in planned
        for receipt in slices.values()
        if not (receipt.file in failed or receipt.file.startswith(below))
    ]
    goes = [delete_removed or item.file in files or not committed.complete(item.fragment) for item in receipts]
    return Leftover(
        # A slice without rows has no shard: its receipt is no reason to finish the output again at each run.
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
    """Removes the shards of changed inputs, now that the new ones are all there, and writes _SUCCESS.

    Another run may have worked on the output meanwhile, on more files: what it committed is in the manifest too.

    Args:
        ledger: the output's books.
        digest: the job's.
        committed: what the output holds.
        corpus: the input as it is now.
        fragments: the plan.
        leftover: what is in the output and not in the plan.
        within_limit: whether few enough rows were rejected; else the output is not called complete.
        seconds: how long the run took.

    Raises:
        JobFailed: a slice never came back, whatever Ray says, or its shard is gone: the output is not called complete.
        FingerprintMismatch: another job has claimed the output.
    """
    where = ledger.storage.url()
    if not ledger.still_claimed(digest):
        raise FingerprintMismatch(
            f"{where}: another job has claimed this output since the run began; choose another output"
        )
    missing = [fragment for fragment in fragments if not committed.complete(fragment.id)]
    if missing:
        raise JobFailed(
            f"{where}: slices of {len(missing):,} of {len(fragments):,} fragments were not committed "
            f"(the first of {missing[0].file.name}); run the same command again"
        )
    receipts = committed.receipts(fragment.id for fragment in fragments)
    ledger.flush()
    there = ledger.shards()
    lost = ledger.storage.missing([item.shard for item in receipts if item.shard and item.shard not in there])
    if lost:
        raise JobFailed(
            f"{ledger.storage.url(lost[0])}: gone since it was committed ({len(lost):,} shards); run the same command again"
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
            f"{len(files):,} files are gone from the input (the first: {min(files)}); their {len(keep):,} shards "
            "stay (output.removed_inputs=delete removes them)"
        )
    named = {receipt.shard for receipt in (*receipts, *keep, *others)}
    ledger.remove(receipt for receipt in leftover.delete if receipt.shard not in named)
    ledger.storage.sweep()
    totals = asdict(Totals.of(receipts)) | {"files": len(corpus.files), "seconds": round(seconds, 3)}
    totals |= {"skipped_files": len(corpus.ignored), "skipped_endings": corpus.ignored_endings}
    ledger.finish([*receipts, *keep, *others], totals)


def _of_other_runs(ledger: Ledger, digest: str, committed: Committed, corpus: Corpus) -> list[Receipt]:
    """What other runs have committed since this one looked, of files that were not there then."""
    now = ledger.committed(digest)
    files = {file.name for file in corpus.files} | set(committed.versions())
    return [
        receipt
        for fragment, slices in now.by_fragment.items()
        if now.complete(fragment)
        for receipt in slices.values()
        if receipt.file not in files
    ]
