"""Shared by all table formats: their protocol, and what is published of an output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import InputError, KosbertError, StorageError, UsageError, first_line
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import footer_of, read_metadata, reading

FOOTER_BYTES = 2**16  # read of each shard's end; larger footers are read again
FOOTERS_AT_ONCE = 256
URI_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "az": "abfs"}


class Conflict(Exception):
    """Somebody else committed to the table since its state was read."""


@dataclass(frozen=True)
class Publication:
    """The complete output that is published, with the manifest of its last run.

    Attributes:
        output: the output.
    """

    output: Output

    @staticmethod
    def of(output: Output) -> Publication:
        """Opens a publication.

        Raises:
            InputError: the output is not complete, or has no rows.
            StorageError: it cannot be read.
            UsageError: no table can name its files.
        """
        output.require_complete()
        publication = Publication(output)
        publication.root  # noqa: B018 (raises)
        if not publication.shards:
            raise InputError(f"{output.storage.url()}: has no rows to publish")
        return publication

    @property
    def run(self) -> str:
        """Id of the run that completed the output."""
        return self.output.run

    @property
    def root(self) -> str:
        """URI of the output's folder, as tables name it: not percent-encoded.

        Raises:
            UsageError: readers of tables know no such addresses.
        """
        storage = self.output.storage
        if found := {"#", "?"}.intersection(storage.root):
            raise UsageError(
                f"{storage.url()}: readers of tables take no {min(found)} in an address; move the output first"
            )
        if not storage.remote:
            return f"file://{storage.root}"
        scheme = storage.address.partition("://")[0]
        if scheme not in URI_SCHEMES:
            raise UsageError(f"{storage.url()}: readers of tables know no {scheme}:// addresses")
        return f"{URI_SCHEMES[scheme]}://{storage.root}"

    @cached_property
    def shards(self) -> dict[str, Receipt]:
        """The shards to publish, by name."""
        return {receipt.shard: receipt for receipt in self.output.receipts if receipt.shard}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of a shard, with their field ids if the output has them."""
        _, metadata = next(self.footers([next(iter(self.shards))]))
        return metadata.schema.to_arrow_schema().remove_metadata()

    def footers(self, shards: Sequence[str]) -> Iterator[tuple[str, pq.FileMetaData]]:
        """Reads the footers of shards, many at once from an object store.

        Raises:
            StorageError: one cannot be read, or is of another file.
        """
        storage = self.output.storage
        for first in range(0, len(shards), FOOTERS_AT_ONCE):
            names = shards[first : first + FOOTERS_AT_ONCE]
            sizes = {name: self.shards[name].output_bytes for name in names}
            for name, end in zip(names, storage.read_ends(sizes, FOOTER_BYTES), strict=True):
                with reading(storage, name):
                    if end is None or int.from_bytes(end[-8:-4], "little") + 8 > len(end):
                        end = storage.read(name)
                    metadata = pq.read_metadata(pa.BufferReader(end))
                    if footer_of(metadata).get("shard") != name:
                        raise ValueError("holds another shard's content")
                yield name, metadata

    def is_own(self, name: str) -> bool:
        """True if a file in the output's folder is, or was, a shard of the output."""
        storage = self.output.storage
        if not storage.exists(name):
            return True  # a table that names it cannot be read
        return (read_metadata(storage, name) or {}).get("fingerprint") == self.output.record.digest

    def rows(self, shard: str) -> int:
        """Rows of a shard, with those that have no vector."""
        return self.shards[shard].shard_rows(self.output.nullable)


@dataclass(frozen=True)
class State:
    """The part of a table that is of an output.

    Attributes:
        runs: the runs whose manifest it may show, as it records; empty if it shows none.
        files: bytes of its files in the output's folder, by name.
        version: names its current state, for messages: "snapshot 123".
        rows_deleted: whether somebody deleted single rows, which the files still have.
    """

    runs: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    version: str = ""
    rows_deleted: bool = False


@dataclass(frozen=True)
class Changes:
    """The changes after which a table shows the manifest.

    Attributes:
        add: shards that it lacks.
        remove: shards that left the manifest.
        replace: shards that were embedded again, after they were lost or damaged, and have another size now.
    """

    add: tuple[str, ...]
    remove: tuple[str, ...]
    replace: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.add or self.remove or self.replace)

    @staticmethod
    def of(publication: Publication, state: State, table: Table) -> Changes:
        """Compares the manifest with what a table shows.

        Raises:
            InputError: somebody else removed, rewrote or deleted what was published.
            StorageError: a manifest cannot be read.
        """
        before = _published(publication, state, table)
        missing = sorted(before - state.files.keys())
        if missing and not state.files:
            raise InputError(
                f"{table.address}: shows a run of the output, but names no file in {publication.root}; if the output was "
                "moved or copied, publish it as another table"
            )
        if missing:
            raise InputError(
                f"{table.address}: {missing[0]} was published and is no longer in the table "
                f"({len(missing):,} of {len(before):,} files): somebody rewrote or deleted it "
                f"({table.culprit(missing[0]) or state.version}), and it would come back; roll the table back, or publish "
                "as another one"
            )
        now = publication.shards
        others = state.files.keys() - before - now.keys()  # such as of a run that somebody rolled back
        remove = tuple(sorted((before | {name for name in others if publication.is_own(name)}) - now.keys()))
        if remove and state.rows_deleted:
            raise InputError(
                f"{table.address}: somebody deleted rows from the table ({state.version}), which would come back in new "
                "files; roll the table back, or publish as another one"
            )
        replace = tuple(name for name in now if state.files.get(name, now[name].output_bytes) != now[name].output_bytes)
        return Changes(tuple(name for name in now if name not in state.files), remove, replace)


def _published(publication: Publication, state: State, table: Table) -> frozenset[str]:
    """The shards of the manifest that a table shows."""
    ledger = publication.output.ledger
    found: frozenset[str] = frozenset()
    for run in state.runs:
        try:
            found = ledger.shards_of(run)
        except StorageError as error:
            raise StorageError(
                f"{table.address}: shows run {run} of the output, whose manifest in _kosbert/manifests is missing or "
                "broken; drop the table and publish again"
            ) from error
        if found <= state.files.keys():
            break
    return found


class Table(Protocol):
    """A table as it was when it was opened.

    A module of a table format has a function ``open(address, publication) -> Table``, which raises UsageError if the
    address is wrong, StorageError if the catalog cannot be reached; importing it raises UsageError if its library is
    missing.

    Attributes:
        address: its address.
    """

    address: str

    def require_fitting(self) -> None:
        """Checks before anything is written that the table can show the output.

        Raises:
            UsageError: it lacks the type of a column.
            InputError: it has other columns, or vectors of another model, or is not one of kosbert-ray's.
        """
        ...

    def state(self) -> State:
        """Reads what it shows; an empty state if it does not exist."""
        ...

    def culprit(self, shard: str) -> str:
        """The commit that removed a shard, for a message; empty if it is not known."""
        ...

    def commit(self, changes: Changes) -> str:
        """Makes the changes to the state that was read, in one commit. Creates the table if there is none.

        Returns:
            The new state, as in :attr:`State.version`.

        Raises:
            Conflict: the table has changed since it was opened.
            StorageError: the catalog or the store refuses.
        """
        ...


def refused(address: str, error: BaseException) -> KosbertError:
    """The error for what a catalog or a library raises."""
    return StorageError(f"{address}: {first_line(error)[:300]}")


@contextlib.contextmanager
def library_errors(address: str, *conflicts: type[Exception]) -> Iterator[None]:
    """Turns what a library, its catalogs and stores raise into this package's errors.

    Args:
        address: of the table, for the message.
        conflicts: raised where somebody else was faster, or where the end of a commit is not known.
    """
    try:
        yield
    except (KosbertError, Conflict):
        raise
    except conflicts as error:
        raise Conflict from error
    except Exception as error:  # catalogs raise what their own libraries do
        raise refused(address, error) from error
