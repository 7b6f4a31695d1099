"""Apache Iceberg: shards become the data files of a table in any catalog that pyiceberg knows.

Adds and removes of a run are one snapshot. pyiceberg's own retries are off: they would register a file twice where another
writer has added it meanwhile, so a commit that loses a race is compared with the table again.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from kosbert_ray.errors import InputError, UsageError, first_line
from kosbert_ray.outputs.publish.base import Changes, Publication, State, library_errors, refused
from kosbert_ray.outputs.publish.types import require_table_types
from kosbert_ray.shards.field_ids import field_ids, with_field_ids

try:
    from pyiceberg.catalog import Catalog, load_catalog
    from pyiceberg.exceptions import (
        CommitFailedException,
        CommitStateUnknownException,
        NamespaceAlreadyExistsError,
        NoSuchNamespaceError,
        NoSuchTableError,
        TableAlreadyExistsError,
    )
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
        pyarrow_to_schema,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestEntryStatus
    from pyiceberg.schema import Schema, index_by_name
    from pyiceberg.table import Table as OpenTable
    from pyiceberg.table.snapshots import Snapshot, ancestors_of
except ImportError as error:
    raise UsageError("iceberg: pyiceberg is not installed; pip install 'kosbert-ray[iceberg]'") from error

NAME = "Iceberg"
UNSAFE = frozenset("#?%\\")  # in names, which become parts of URIs
# Properties of the table. Those of an output end with the start of its identity.
MODEL = "kosbert-ray.model"
RUN = "kosbert-ray.run"
OUTPUT = "kosbert-ray.output"  # of a snapshot
CONFLICTS = (CommitFailedException, CommitStateUnknownException, TableAlreadyExistsError)
NAME_MAPPING = "schema.name-mapping.default"


def parse(address: str) -> tuple[str, tuple[str, ...]]:
    """The catalog and the name of the table; raises UsageError."""
    match = re.fullmatch(r"iceberg://([^/]+)/([^/]+)", address)
    names = tuple(match[2].split(".")) if match else ()
    if not match or len(names) < 2 or not all(names) or UNSAFE.intersection(match[2]):
        raise UsageError(f"{address}: write iceberg://CATALOG/NAMESPACE.TABLE, such as iceberg://prod/search.vectors")
    return match[1], names


def open(address: str, publication: Publication) -> IcebergTable:
    """Opens ``iceberg://CATALOG/NAMESPACE.TABLE``; the catalog is one of pyiceberg's configuration."""
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)  # it warns of each column without statistics
    _, identifier = parse(address)
    return IcebergTable(address, _catalog(address), identifier, publication)


def require_reachable(address: str) -> None:
    """Opens the catalog; raises UsageError if it is not configured, StorageError if it cannot be reached."""
    with library_errors(address):
        _catalog(address).namespace_exists("default")


def _catalog(address: str) -> Catalog:
    name, _ = parse(address)
    try:
        return load_catalog(name)
    except ValueError as error:
        raise UsageError(
            f"{address}: there is no catalog {name!r} ({first_line(error)}); configure it in ~/.pyiceberg.yaml or by "
            f"PYICEBERG_CATALOG__{name.upper()}__URI"
        ) from error
    except Exception as error:  # catalogs raise what their own libraries do
        raise refused(address, error) from error


class IcebergTable:
    """A table as it was when it was opened. It may have files of several outputs."""

    def __init__(self, address: str, catalog: Catalog, identifier: tuple[str, ...], publication: Publication) -> None:
        self.address = address
        self._catalog, self._identifier, self._publication = catalog, identifier, publication
        self._identity = publication.output.identity
        self._run_property = f"{RUN}.{self._identity[:16]}"
        self._table: OpenTable | None = None
        with self._errors(), contextlib.suppress(NoSuchTableError, NoSuchNamespaceError):
            self._table = catalog.load_table(identifier)
        self._files: dict[str, DataFile] = {}

    # -- checks --------------------------------------------------------------------------------------------------------

    def require_fitting(self) -> None:
        """See :class:`Table`."""
        schema = self._publication.schema
        require_table_types(schema, self._publication.output, NAME)
        with self._errors():
            self._schema = pyarrow_to_schema(with_field_ids(schema))
        table = self._table
        if table is None:
            return
        theirs = table.metadata.properties.get(MODEL)
        if theirs is None:
            raise InputError(f"{self.address}: was not made by kosbert-ray publish; choose another table")
        if theirs != self._publication.output.vectors_identity:
            raise InputError(f"{self.address}: has vectors of another model; choose another table")
        if not table.spec().is_unpartitioned():
            raise InputError(f"{self.address}: is partitioned by now, and shards are not; choose another table")
        self._require_columns(table.schema())

    def _require_columns(self, theirs: Schema) -> None:
        """Compares the columns, and their ids with those in the files: readers would take one column for another."""
        mine, ids = self._schema, field_ids(self._publication.schema)
        numbers = index_by_name(theirs)
        for path, _ in sorted(index_by_name(mine).items(), key=itemgetter(1)):
            found = numbers.get(path)
            if found is None:
                raise InputError(f"{self.address}: has no column {path!r}; choose another table")
            kinds = tuple(schema.find_type(path) for schema in (mine, theirs))
            if all(kind.is_primitive for kind in kinds) and kinds[0] != kinds[1]:
                raise InputError(
                    f"{self.address}: its column {path!r} is {kinds[1]}, and that of the output is {kinds[0]}; choose "
                    "another table"
                )
            if ids.get(path, found) != found:
                raise InputError(
                    f"{self.address}: its column {path!r} has id {found}, and in the files of the output {ids[path]}; "
                    "choose another table"
                )
        for column in theirs.fields:
            if column.required and column.name not in {item.name for item in mine.fields}:
                raise InputError(f"{self.address}: requires a column {column.name!r}, which the output lacks")

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """See :class:`Table`."""
        with self._errors():
            table = self._table
            snapshot = table.current_snapshot() if table else None
            if table is None or snapshot is None:
                return State()
            before = f"{self._publication.root}/"
            self._files, deletes = {}, False
            for manifest in snapshot.manifests(table.io):
                if manifest.content == ManifestContent.DELETES:
                    deletes = deletes or bool(manifest.fetch_manifest_entry(table.io))
                    continue
                for entry in manifest.fetch_manifest_entry(table.io):
                    path = entry.data_file.file_path
                    if path.startswith(before):
                        self._files[path.removeprefix(before)] = entry.data_file
            return State(
                self._runs(table, snapshot),
                {name: file.file_size_in_bytes for name, file in self._files.items()},
                _told(snapshot),
                deletes,
            )

    def _runs(self, table: OpenTable, snapshot: Snapshot) -> tuple[str, ...]:
        """The run of the last snapshot of this output; of the table's properties where that has expired."""
        for ancestor in ancestors_of(snapshot, table.metadata):
            summary = _properties(ancestor)
            if summary.get(OUTPUT) == self._identity:
                return (summary[RUN],)
        run = table.metadata.properties.get(self._run_property)
        return () if run is None else (run,)

    def culprit(self, shard: str) -> str:
        """See :class:`Table`."""
        table = self._table
        path = f"{self._publication.root}/{shard}"
        with contextlib.suppress(Exception):  # it only explains a refusal
            assert table is not None
            for snapshot in ancestors_of(table.current_snapshot(), table.metadata):
                for manifest in snapshot.manifests(table.io):
                    if manifest.added_snapshot_id != snapshot.snapshot_id or not manifest.deleted_files_count:
                        continue
                    for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                        if entry.status == ManifestEntryStatus.DELETED and entry.data_file.file_path == path:
                            return _told(snapshot)
        return ""

    # -- commit --------------------------------------------------------------------------------------------------------

    def commit(self, changes: Changes) -> str:
        """See :class:`Table`."""
        with self._errors():
            table = self._table or self._create()
            properties = {self._run_property: self._publication.run}
            added = list(self._data_files(table, (*changes.add, *changes.replace)))
            transaction = table.transaction()
            transaction.set_properties(properties)
            about = {RUN: self._publication.run, OUTPUT: self._identity}
            with transaction.update_snapshot(snapshot_properties=about).overwrite() as update:
                for file in added:
                    update.append_data_file(file)
                for shard in (*changes.remove, *changes.replace):
                    update.delete_data_file(self._files[shard])
            snapshot = transaction.commit_transaction().current_snapshot()
            assert snapshot is not None
            return _told(snapshot)

    def _create(self) -> OpenTable:
        """Creates the table without a snapshot."""
        vectors = {
            f"write.metadata.metrics.column.{item.column}.element": "none" for item in self._publication.output.formats
        }
        namespace = self._identifier[:-1]
        with contextlib.suppress(NamespaceAlreadyExistsError):
            self._catalog.create_namespace(namespace)
        table = self._catalog.create_table(
            self._identifier,
            self._schema,
            properties={
                MODEL: self._publication.output.vectors_identity,
                "gc.enabled": "false",  # expiring snapshots or dropping the table must not delete shards
                "commit.retry.num-retries": "0",
                NAME_MAPPING: self._schema.name_mapping.model_dump_json(),
                **vectors,
            },
        )
        self._require_columns(table.schema())
        return table

    def _data_files(self, table: OpenTable, shards: tuple[str, ...]) -> Iterator[DataFile]:
        schema, metadata = table.schema(), table.metadata
        plan = compute_statistics_plan(schema, metadata.properties)
        columns = parquet_path_to_id_mapping(schema)
        ids, publication = field_ids(self._publication.schema), self._publication
        for shard, footer in publication.footers(shards):
            if field_ids(footer.schema.to_arrow_schema()) != ids:
                raise InputError(
                    f"{publication.output.storage.url(shard)}: its field ids are not those of the other shards"
                )
            statistics = data_file_statistics_from_parquet_metadata(footer, plan, columns)
            yield DataFile.from_args(
                content=DataFileContent.DATA,
                file_path=f"{publication.root}/{shard}",
                file_format=FileFormat.PARQUET,
                partition=statistics.partition(table.spec(), schema),
                file_size_in_bytes=publication.shards[shard].output_bytes,
                sort_order_id=None,
                spec_id=metadata.default_spec_id,
                equality_ids=None,
                key_metadata=None,
                **statistics.to_serialized_dict(),
            )

    # -- the catalog ---------------------------------------------------------------------------------------------------

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return library_errors(self.address, *CONFLICTS)


def _properties(snapshot: Snapshot) -> dict[str, Any]:
    return dict(snapshot.summary.additional_properties) if snapshot.summary else {}


def _told(snapshot: Snapshot) -> str:
    operation = f", {snapshot.summary.operation.value}" if snapshot.summary else ""
    return f"snapshot {snapshot.snapshot_id}{operation}"
