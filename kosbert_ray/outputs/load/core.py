"""Loads an output into a destination: every row once, resumable, and again after later runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from kosbert_ray.errors import JobFailed, StorageError
from kosbert_ray.outputs.alone import alone
from kosbert_ray.outputs.load.base import Destination, Source, Work
from kosbert_ray.outputs.load.table import open_destination
from kosbert_ray.units import plural


@dataclass(frozen=True)
class Loaded:
    """The result of a load.

    Attributes:
        address: the destination, without a password.
        rows: rows of this output that it holds now, by its own count.
        others: rows of other outputs that it holds.
        added, replaced, removed: rows that were loaded for the first time, loaded again and deleted.
        bytes: bytes of the shards that were read.
        skipped: rows of the output that are not loaded, by reason.
        done: False for a dry run.
    """

    address: str
    rows: int
    others: int
    added: int
    replaced: int
    removed: int
    bytes: int
    skipped: dict[str, int]
    done: bool


def load(source: Source, address: str, dry_run: bool = False) -> Loaded:
    """Loads an output.

    The work to do is the manifest less what the destination says it holds, so that a destination that was restored from a
    backup, or dropped, is brought up to date like any other.

    Args:
        source: what to load.
        address: the destination.
        dry_run: only say what would be done.

    Raises:
        UsageError: the address is wrong, a library is missing, or the destination lacks a type.
        InputError: an id is null or occurs twice, or the destination holds other vectors.
        JobFailed: another load of this output to this destination is running, or the output has changed meanwhile.
        StorageError: the destination refuses, or holds other rows in the end.
    """
    destination = open_destination(address, source)
    with contextlib.closing(destination):
        destination.require_fitting()
        if dry_run:
            held = destination.held()
            return _described(source, destination, Work.of(source, held), held)
        source.require_unique_ids()
        with alone(source.output.ledger, destination.address, source.options.name, "load"):
            if source.output.again().run != source.output.run:
                raise JobFailed(
                    f"{source.output.storage.url()}: another run has ended meanwhile; run the same command again"
                )
            held = destination.held()  # after an earlier load has ended
            work = Work.of(source, held)
            destination.apply(work)
            rows = destination.held()
        _require_rows(source, destination, rows)
        return replace(_described(source, destination, work, held), rows=sum(rows.values()), done=True)


def _described(source: Source, destination: Destination, work: Work, held: dict[str, int]) -> Loaded:
    """The changes to a destination that holds these rows."""
    receipts = source.receipts
    return Loaded(
        address=destination.address,
        rows=sum(held.values()),
        others=destination.others(),
        added=sum(receipts[shard].rows for shard in work.add),
        replaced=sum(receipts[shard].rows for shard in work.replace),
        removed=sum(held[shard] for shard in work.remove),
        bytes=sum(receipts[shard].output_bytes for shard in work.load),
        skipped=_skipped(source),
        done=False,
    )


def _skipped(source: Source) -> dict[str, int]:
    rejected = source.output.totals.rejected
    return {"rejected": rejected} if rejected else {}


def _require_rows(source: Source, destination: Destination, held: dict[str, int]) -> None:
    """Raises StorageError unless the destination holds exactly the rows of the manifest that have a vector."""
    left = Work.of(source, held)
    for shards, how in ((left.add, "lacks"), (left.replace, "has another number of rows of"), (left.remove, "still has")):
        if shards:
            raise StorageError(
                f"{destination.address}: {how} {plural(len(shards), 'shard')} ({shards[0]}) after the load; was it changed "
                "meanwhile? Run the same command again"
            )
