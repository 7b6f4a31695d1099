"""The end of a run: the output is held against the plan, what the input no longer holds goes, and _SUCCESS is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.corpus.plan import Fragment
from kosbert_ray.errors import JobFailed
from kosbert_ray.job.progress import Totals
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt


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
        delete=tuple(item for item, go in zip(receipts, goes, strict=True) if go),
        keep=tuple(item for item, go in zip(receipts, goes, strict=True) if not go),
    )


def finish(
    ledger: Ledger,
    committed: Committed,
    corpus: Corpus,
    fragments: list[Fragment],
    leftover: Leftover,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Removes the shards of changed inputs, now that the new ones are all there, and writes _SUCCESS.

    Args:
        ledger: the output's books.
        committed: what the output holds.
        corpus: the input as it is now.
        fragments: the plan.
        leftover: what is in the output and not in the plan.
        seconds: how long the run took.
        say: takes a line for the user.

    Raises:
        JobFailed: a slice never came back, whatever Ray says, or its shard is gone: the output is not called complete.
    """
    where = ledger.storage.url()
    missing = [fragment for fragment in fragments if not committed.complete(fragment.id)]
    if missing:
        raise JobFailed(
            f"{where}: slices of {len(missing):,} of {len(fragments):,} fragments were not committed "
            f"(the first of {missing[0].file.name}); run the same command again"
        )
    receipts = committed.receipts(fragment.id for fragment in fragments)
    there = ledger.shards()
    lost = [receipt.shard for receipt in receipts if receipt.shard and receipt.shard not in there]
    if lost:
        raise JobFailed(
            f"{ledger.storage.url(lost[0])}: gone since it was committed ({len(lost):,} shards); run the same command again"
        )
    if leftover.keep:
        files = {receipt.file for receipt in leftover.keep}
        say(
            f"{len(files):,} files are gone from the input (the first: {min(files)}); their {len(leftover.keep):,} shards "
            "stay (output.removed_inputs=delete removes them)"
        )
    ledger.remove(leftover.delete)
    ledger.storage.sweep()
    totals = asdict(Totals.of(receipts)) | {"files": len(corpus.files), "seconds": round(seconds, 3)}
    ledger.finish([*receipts, *leftover.keep], totals)
