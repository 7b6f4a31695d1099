"""Delta Lake: the log of the table lies in the output's folder, in ``_delta_log``.

Adds and removes of a run are one commit. The number of its manifest is the version of an application transaction in the
log, which Delta records and deltalake does not enforce: it is read before each commit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from urllib.parse import quote, unquote

import pyarrow as pa

from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.outputs.publish.base import Changes, Publication, State, library_errors
from kosbert_ray.outputs.publish.types import require_column_names, require_table_types

try:
    from deltalake import CommitProperties, DeltaTable, Transaction
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
    from deltalake.schema import Schema
    from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions
except ImportError as error:
    raise UsageError("delta: deltalake is not installed; pip install 'kosbert-ray[delta]'") from error

NAME = "Delta"
APPLICATION = "kosbert-ray"
FORBIDDEN = " ,;{}()\n\t="  # in names of columns, without column mapping
RUN = "kosbert-ray.run"  # in the information about a commit
UNSAFE = frozenset("%\\")  # in a path, which deltalake would look for elsewhere
RECENT_COMMITS = 20  # read for the last one of this output

log = logging.getLogger(__name__)


def parse(address: str) -> None:
    """Checks the address; raises UsageError."""
    if address != "delta":
        raise UsageError(f"{address}: write delta; the table is the output's own folder")


def require_reachable(address: str) -> None:
    """The table is in the output's folder, which the run writes to."""
    parse(address)


def open(address: str, publication: Publication) -> Delta:
    """Opens ``delta``."""
    parse(address)
    return Delta(publication)


class Delta:
    """The table in the output's folder, as it was when it was opened."""

    def __init__(self, publication: Publication) -> None:
        storage = publication.output.storage
        self.address = "delta"
        self._publication = publication
        self._uri = publication.root if storage.remote else storage.root
        if found := UNSAFE.intersection(self._uri):
            raise UsageError(f"{self._uri}: deltalake takes no {min(found)} in the path of a table; move the output first")
        self._options = storage.options.object_store_options() if storage.remote else None
        self._application = f"{APPLICATION}/{publication.output.identity[:16]}"
        self._table: DeltaTable | None = None
        with self._errors(), contextlib.suppress(TableNotFoundError):
            self._table = DeltaTable(self._uri, storage_options=self._options)
        self._sizes: dict[str, int] = {}

    def require_fitting(self) -> None:
        """See :class:`Table`."""
        schema = self._publication.schema
        require_table_types(schema, self._publication.output, NAME)
        require_column_names(schema.names, FORBIDDEN, NAME)
        if quote(self._publication.root, safe="/:=+@,") != self._publication.root:
            log.warning(
                f"{self._uri}: Polars, Daft and DuckDB find no files of a Delta table at an address with such letters"
            )
        with self._errors():
            self._schema = Schema.from_arrow(_in_microseconds(schema))
            table = self._table
            if table is None:
                return
            if table.transaction_version(self._application) is None:
                where = self._publication.output.storage.url("_delta_log")
                raise InputError(f"{where}: was not made by kosbert-ray publish, or for another output; delete it first")
            if not {str(field) for field in self._schema.fields} <= {str(field) for field in table.schema().fields}:
                raise InputError(f"{self._uri}: the columns of the Delta table are not those of the output any more")

    def state(self) -> State:
        """See :class:`Table`."""
        table = self._table
        if table is None:
            return State()
        with self._errors():
            files = pa.table(table.get_add_actions())
            self._sizes = dict(zip(map(unquote, files["path"].to_pylist()), files["size_bytes"].to_pylist(), strict=True))
            features = table.protocol().reader_features or ()
            return State(self._runs(table), self._sizes, f"version {table.version()}", "deletionVectors" in features)

    def _runs(self, table: DeltaTable) -> tuple[str, ...]:
        """The run of the last commit of this output; where the log no longer has it, the runs of the manifest's number."""
        number = table.transaction_version(self._application)
        if number is None:
            return ()
        newest = table.version()
        for commit in table.history(RECENT_COMMITS):
            if int(commit["version"]) > newest:
                continue
            if run := commit.get(RUN):
                return (str(run),)
            if commit.get("operation") == "RESTORE":  # what it skipped is no longer shown
                target = commit.get("operationParameters", {}).get("version")
                newest = int(target) if str(target).isdigit() else newest
        return tuple(self._publication.output.ledger.runs_numbered(number)) or (f"number {number}",)

    def culprit(self, shard: str) -> str:
        """See :class:`Table`. Delta's history does not name files: it is the first commit after this output's last."""
        del shard
        first = ""
        with contextlib.suppress(DeltaError, OSError):  # it only explains a refusal
            for commit in self._table.history() if self._table else ():
                if RUN in commit:
                    break
                first = f"version {commit['version']}, {commit['operation']}"
        return first

    def commit(self, changes: Changes) -> str:
        """See :class:`Table`."""
        number = self._publication.output.ledger.number_of(self._publication.run)
        now = int(time.time() * 1000)
        about = CommitProperties(
            custom_metadata={RUN: self._publication.run},
            max_commit_retries=0,
            app_transactions=[Transaction(self._application, number, now)],
        )
        adds = list(self._adds((*changes.add, *changes.replace), now))  # a file that is added again is replaced
        removes = [RemoveAction(shard, True, now, self._sizes[shard], {}) for shard in changes.remove]
        with self._errors():
            if self._table is None:
                create_table_with_add_actions(
                    self._uri,
                    self._schema,
                    adds,
                    mode="error",
                    storage_options=self._options,
                    commit_properties=about,
                )
                return "version 0"
            self._table.create_write_transaction(
                [*adds, *removes], mode="append", schema=self._table.schema(), commit_properties=about
            )
            self._table.update_incremental()
            return f"version {self._table.version()}"

    def _adds(self, shards: tuple[str, ...], now: int) -> Iterator[AddAction]:
        for shard in shards:
            stats = json.dumps({"numRecords": self._publication.rows(shard)})
            yield AddAction(shard, self._publication.shards[shard].output_bytes, {}, now, True, stats)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return library_errors(f"{self._uri}/_delta_log", CommitFailedError)


def _in_microseconds(schema: pa.Schema) -> pa.Schema:
    """Delta has no other times; a file's milliseconds are read as such."""
    fields = [
        field.with_type(pa.timestamp("us", field.type.tz)) if pa.types.is_timestamp(field.type) else field
        for field in schema
    ]
    return pa.schema([field.remove_metadata() for field in fields])
