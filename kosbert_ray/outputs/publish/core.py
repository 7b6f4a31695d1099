"""Publishes an output as a table: its shards in place, each once, and again after later runs."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from kosbert_ray.errors import InputError, KosbertError, StorageError
from kosbert_ray.outputs.alone import alone
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.publish.base import Changes, Conflict, Publication, Table
from kosbert_ray.outputs.publish.table import open_table
from kosbert_ray.shards.lease import holders
from kosbert_ray.shards.published import PublishedTable, Retired
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
        word = "deleted" if self.done else "to delete"
        deleted = f", {plural(self.deleted, 'retired shard')} {word}" if self.deleted else ""
        return (
            f"{verb}: {self.table}, {self.version or 'new'}: {plural(self.rows, 'row')} in {plural(self.shards, 'shard')}; "
            f"{plural(self.added, 'shard')} added, {self.removed:,} removed{replaced}{deleted}"
        )


@dataclass(frozen=True)
class Forgotten:
    """The result of :func:`forget`.

    Attributes:
        table: the address.
        deleted: retired shards that were deleted from the output's folder.
    """

    table: str
    deleted: int

    def line(self) -> str:
        """Describes it in one line."""
        deleted = f"; {plural(self.deleted, 'retired shard')} deleted" if self.deleted else ""
        return f"forgotten: {self.table}{deleted}"


def publish(output: Output, address: str, retain: float, dry_run: bool = False) -> Published:
    """Publishes an output.

    The changes are the manifest less what the table shows, so that the same publish completes one that was killed.

    Args:
        output: a complete output; it is read again once no other publish is running.
        address: the table.
        retain: seconds that shards are kept after the last table has left them.
        dry_run: only say what would change.

    Raises:
        UsageError: the address is wrong, a library is missing, or the format lacks the type of a column.
        InputError: the output is not complete, the table is another one, or somebody changed what was published.
        JobFailed: another publish of this output as this table is running.
        StorageError: the catalog or the store refuses.
    """
    publications = output.ledger.publications
    first = publications.find(address) is None
    if first or dry_run:
        publication, table = _opened(output, address)
    if dry_run:
        state = table.state()
        changes = Changes.of(publication, state, table)
        deleted = len(_deletable(output, retain, address)[1])
        return _described(publication, table, changes, state.version, deleted)
    with alone(output.ledger, address, "", "publish"):
        if first:  # before the output is read again, so that no run deletes a shard that is to be published
            publications.remember(PublishedTable(address))
        try:
            publication, table, changes, version = _published(output, address)
        except KosbertError:
            with contextlib.suppress(KosbertError):
                if first and not open_table(address, publication).state().files:
                    publications.forget(PublishedTable(address))
            raise
        publications.remember(PublishedTable(address, publication.run))
        deleted = delete_retired(output.again(), retain)
        return _described(publication, table, changes, version, deleted, done=True)


def _opened(output: Output, address: str) -> tuple[Publication, Table]:
    publication = Publication.of(output)
    table = open_table(address, publication)
    table.require_fitting()
    return publication, table


def _published(output: Output, address: str) -> tuple[Publication, Table, Changes, str]:
    """Changes the table until it shows the output's latest run; returns the last changes and the version of the table."""
    for _ in range(ATTEMPTS):
        publication, table = _opened(output.again(), address)
        state = table.state()
        changes = Changes.of(publication, state, table)
        version = state.version
        if changes:
            try:
                version = table.commit(changes)
            except Conflict:  # also if it is not known whether the commit succeeded
                log.info(f"{table.address}: changed meanwhile; comparing again")
                continue
        if output.again().run == publication.run:
            return publication, table, changes, version
        log.info(f"{output.storage.url()}: another run has ended meanwhile; publishing it, too")
    raise StorageError(f"{address}: others keep committing; run the same command again")


def forget(output: Output, address: str) -> Forgotten:
    """Stops keeping shards for a table. It can no longer be read once they are deleted.

    Retired shards that cannot be deleted now, as a run is writing to the output, are deleted by the next run.

    Raises:
        InputError: the output is not published as this table.
        JobFailed: a publish of this output as this table is running.
    """
    publications = output.ledger.publications
    known = publications.find(address)
    if known is None:
        tables = ", ".join(table.table for table in publications.tables) or "none"
        raise InputError(f"{output.storage.url()}: is not published as {address}; its tables: {tables}")
    with alone(output.ledger, address, "", "publish"):
        publications.forget(known)
        return Forgotten(address, delete_retired(output, float("inf") if publications.tables else 0.0))


def delete_retired(output: Output, retain: float) -> int:
    """Deletes shards that left the manifest and that no table names any more; returns their number.

    Args:
        output: the output, as it is now.
        retain: seconds that they are kept since.
    """
    expired, names = _deletable(output, retain)
    output.ledger.delete(names)
    output.ledger.publications.drop(expired)
    return len(names)


def _deletable(output: Output, retain: float, published: str = "") -> tuple[list[Retired], list[str]]:
    """Finds the retired shards to delete.

    Args:
        output: the output.
        retain: seconds that they are kept.
        published: the address of a table that is about to show the output as it is now, in a dry run.

    Returns:
        The records of the shards, and the shards' names.
    """
    ledger = output.ledger
    publications, tables = ledger.publications, ledger.publications.tables
    nothing: tuple[list[Retired], list[str]] = [], []
    if not publications.records:
        return nothing
    if unknown := [table.table for table in tables if not table.run and table.table != published]:
        log.warning(
            f"retired shards stay: it is not known what {unknown[0]} shows; publish it again, or stop keeping shards for "
            "it with --forget"
        )
        return nothing
    if others := holders(ledger.storage):
        log.info(f"retired shards stay for now: a run is writing to the output (on {others[0].host}, {others[0].pid})")
        return nothing
    if not output.complete:
        log.info("retired shards stay for now: the output is not complete")
        return nothing
    try:
        runs = {table.run for table in tables if table.table != published}
        manifest = ledger.shards_of(output.run)
        in_tables = frozenset[str]().union(*map(ledger.shards_of, runs - {output.run}))
    except StorageError as error:
        log.warning(f"retired shards stay: {error}")
        return nothing
    expired = publications.expired(in_tables, retain, mark=not published)
    gone = {record.run for record in expired}
    kept = {shard for record in publications.records if record.run not in gone for shard in record.shards} | manifest
    return expired, [shard for record in expired for shard in record.shards if shard not in kept]


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
