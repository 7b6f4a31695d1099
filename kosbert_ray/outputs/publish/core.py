"""Publishes an output as a table: its shards in place, each once, and again after later runs."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

from kosbert_ray.errors import KosbertError, StorageError
from kosbert_ray.outputs.alone import alone
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.publish.base import Changes, Conflict, Publication, Table
from kosbert_ray.outputs.publish.table import open_table
from kosbert_ray.shards.lease import holders
from kosbert_ray.shards.published import PublishedTable
from kosbert_ray.units import plural

ATTEMPTS = 10  # commits that others were faster than

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """The result of a publish.

    Attributes:
        table: its address.
        run: the run that it shows.
        version: its state, such as a snapshot.
        rows: rows of the output that it shows.
        shards: their shards.
        added, removed, replaced: shards that were added, that were removed, and that have another size since they were
            embedded again.
        deleted: retired shards that were deleted from the output's folder.
        done: False for a dry run.
    """

    table: str
    run: str
    version: str
    rows: int
    shards: int
    added: int
    removed: int
    replaced: int
    deleted: int
    done: bool

    def line(self) -> str:
        """Describes the changes and the table in one line."""
        verb = "published" if self.done else "to publish"
        replaced = f", {self.replaced:,} replaced" if self.replaced else ""
        deleted = f", {plural(self.deleted, 'retired shard')} deleted" if self.deleted else ""
        return (
            f"{verb}: {self.table}, {self.version or 'new'}: {plural(self.rows, 'row')} in {plural(self.shards, 'shard')}; "
            f"{plural(self.added, 'shard')} added, {self.removed:,} removed{replaced}{deleted}"
        )


def publish(publication: Publication, address: str, retain: float, dry_run: bool = False) -> Published:
    """Publishes an output.

    The changes are the manifest less what the table shows, so that the same publish completes one that was killed.

    Args:
        publication: what to publish.
        address: the table.
        retain: seconds that shards are kept after the last table has left them.
        dry_run: only say what would change.

    Raises:
        UsageError: the address is wrong, a library is missing, or the format lacks the type of a column.
        InputError: the table is another one, or somebody changed what was published.
        JobFailed: another publish of this output as this table is running.
        StorageError: the catalog or the store refuses.
    """
    table = open_table(address, publication)
    table.require_fitting()
    if dry_run:
        state = table.state()
        return _described(publication, table, Changes.of(publication, state, table), state.version)
    ledger = publication.output.ledger
    with alone(ledger, address, "", "publish"):
        known = next((item for item in ledger.publications.tables if item.table == address), None)
        if known is None:  # before the first commit, so that no run deletes a shard that it names
            known = PublishedTable(address)
            ledger.publications.remember(known)
        try:
            changes, version = _commit(publication, table)
        except KosbertError:
            with contextlib.suppress(KosbertError):
                if not known.run and not table.state().files:
                    ledger.publications.forget(known)
            raise
        ledger.publications.remember(PublishedTable(address, publication.run, time.time()))
        deleted = delete_retired(publication.output, retain)
        return _described(publication, table, changes, version, deleted, done=True)


def _commit(publication: Publication, table: Table) -> tuple[Changes, str]:
    """Changes the table until it shows the manifest; returns the changes and the version of the table."""
    for _ in range(ATTEMPTS):
        state = table.state()
        changes = Changes.of(publication, state, table)
        if not changes:
            return changes, state.version
        try:
            return changes, table.commit(changes)
        except Conflict:  # also if it is not known whether the commit succeeded
            log.info(f"{table.address}: changed meanwhile; comparing again")
    raise StorageError(f"{table.address}: others keep committing; run the same command again")


def forget(output: Output, address: str) -> bool:
    """Stops keeping shards for a table. It can no longer be read once they are deleted.

    Returns:
        False if the output is not published as this table.
    """
    publications = output.ledger.publications
    known = next((item for item in publications.tables if item.table == address), None)
    if known is None:
        return False
    publications.forget(known)
    delete_retired(output, 0.0 if not publications.tables else float("inf"))
    return True


def delete_retired(output: Output, retain: float) -> int:
    """Deletes shards that left the manifest and that no table names any more; returns their number.

    Args:
        output: the output.
        retain: seconds that they are kept since.
    """
    ledger = output.ledger
    publications = ledger.publications
    if not publications.records:
        return 0
    if not output.complete or any(not table.run for table in publications.tables):
        return 0  # what a table shows that was never published to the end is not known
    if others := holders(ledger.storage):
        log.info(f"retired shards stay for now: a run is writing to the output (on {others[0].host}, {others[0].pid})")
        return 0
    manifest = {receipt.shard for receipt in output.receipts}
    runs = {table.run for table in publications.tables} - {str((output.success or {}).get("run"))}
    try:
        in_tables = manifest.union(*map(ledger.shards_of, runs))
    except StorageError as error:
        log.warning(f"retired shards stay: {error}")
        return 0
    names = publications.expire(manifest, in_tables, retain)
    ledger.delete(names)
    publications.drop_expired()
    return len(names)


def _described(
    publication: Publication, table: Table, changes: Changes, version: str, deleted: int = 0, done: bool = False
) -> Published:
    return Published(
        table=table.address,
        run=publication.run,
        version=version,
        rows=sum(map(publication.rows, publication.shards)),
        shards=len(publication.shards),
        added=len(changes.add),
        removed=len(changes.remove),
        replaced=len(changes.replace),
        deleted=deleted,
        done=done,
    )
