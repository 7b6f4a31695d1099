"""LanceDB: a table on a disk or in an object store, searched without a server.

A first load is one commit, a later one a single merge that replaces rows by id and deletes those of shards that are gone.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from kosbert_ray.errors import StorageError, UsageError, first_line
from kosbert_ray.outputs.load.base import (
    OUTPUT,
    SHARD,
    Source,
    VectorTypes,
    Work,
    require_own,
    require_vector_types,
)
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR

try:
    import lancedb
    from lancedb.index import IvfFlat, IvfHnswSq
except ImportError as error:
    raise UsageError("lancedb: not installed; pip install 'kosbert-ray[lancedb]'") from error

MODEL = b"kosbert_ray.model"  # in the schema's metadata
VECTOR_TYPES: VectorTypes = {
    DENSE: {"float32": "float32", "float16": "float16", "ubinary": "uint8"},
    MULTI_VECTOR: {"float32": "float32", "float16": "float16"},
}
MIN_INDEXED = 10_000  # rows; fewer are searched exactly
CLEANUP_AGE = timedelta(days=7)  # older versions of the table are removed


def open(address: str, source: Source) -> LanceDB:
    """Opens ``lancedb:FOLDER`` or ``lancedb:s3://BUCKET/FOLDER``."""
    uri = address.partition(":")[2]
    if not uri:
        raise UsageError("lancedb: name a folder or URL, such as lancedb:tables/ or lancedb:s3://bucket/tables")
    options = source.output.storage.options.object_store_options() if "://" in uri else None
    try:
        return LanceDB(uri, lancedb.connect(uri, storage_options=options), source)
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"lancedb:{uri}: cannot be opened ({first_line(error)})") from error


class LanceDB:
    """A table."""

    def __init__(self, uri: str, database: lancedb.DBConnection, source: Source) -> None:
        self._database, self._source, self._name = database, source, source.options.name
        self.address = f"lancedb:{uri}, table {self._name}"
        self._ours = f"{OUTPUT} = '{source.identity}'"

    def close(self) -> None:
        """Leaves nothing open."""

    def _table(self) -> Any:
        """The table; None if there is none."""
        with self._errors():
            try:
                return self._database.open_table(self._name)
            except ValueError as error:
                if "not found" in str(error):
                    return None
                raise

    @property
    def _schema(self) -> pa.Schema:
        source = self._source
        vectors = [pa.field(item.column, _type(item)) for item in source.formats]
        own = [pa.field(OUTPUT, pa.string()), pa.field(SHARD, pa.string())]
        metadata = {MODEL: source.output.vectors_identity.encode()}
        return pa.schema([*own, *(field.with_nullable(True) for field in source.schema), *vectors], metadata)

    def require_fitting(self) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        require_vector_types(self._source, VECTOR_TYPES, "LanceDB")
        for column in self._schema.names:
            if "." in column:
                raise UsageError(f"column {column!r}: LanceDB takes no '.' in names; rename the column in the input")
        table = self._table()
        if table is None:
            return
        model = (table.schema.metadata or {}).get(MODEL)
        theirs = None if model is None else _kinds(table.schema)
        require_own(self.address, theirs, _kinds(self._schema), model == self._source.output.vectors_identity.encode())

    def held(self) -> dict[str, int]:
        """Counts the rows of this output by shard."""
        table = self._table()
        if table is None:
            return {}
        counts: Counter[str] = Counter()
        with self._errors():
            for batch in table.search().where(self._ours).select([SHARD]).to_batches():
                counts.update(batch.column(SHARD).to_pylist())
        return dict(counts)

    def others(self) -> int:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        table = self._table()
        with self._errors():
            return 0 if table is None else int(table.count_rows(f"NOT ({self._ours})"))

    def apply(self, work: Work) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        if not (work.load or work.delete):
            return
        rows = pa.RecordBatchReader.from_batches(self._schema, self._batches(work.load))
        with self._errors():
            table = self._table()
            if table is None:
                table = self._database.create_table(self._name, rows)
            else:
                self._merge(table, work, rows)
            self._index(table)

    def _merge(self, table: Any, work: Work, rows: pa.RecordBatchReader) -> None:
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in work.delete)
        merge = table.merge_insert([OUTPUT, *self._source.key]).when_matched_update_all().when_not_matched_insert_all()
        if names:
            merge = merge.when_not_matched_by_source_delete(f"{self._ours} AND {SHARD} IN ({names})")
        merge.execute(rows)

    def _batches(self, shards: Sequence[str]) -> Iterator[pa.RecordBatch]:
        schema, identity = self._schema, self._source.identity
        for shard in shards:
            found = self._source.rows(shard)
            count = found.table.num_rows
            vectors = [_array(item, found.vectors[item.column]) for item in self._source.formats]
            columns = [pa.array([identity] * count), pa.array([shard] * count), *found.table.columns, *vectors]
            yield from pa.table(columns, schema=schema).to_batches()

    def _index(self, table: Any) -> None:
        """Indexes the dense vectors, or brings their indexes up to date.

        Token vectors are searched exactly: with an index, LanceDB takes a row into account only if it is among the nearest
        of some token, which of 12,000 rows found 7 to 40% of the ten nearest.
        """
        source = self._source
        dense = [item for item in source.formats if item.kind == DENSE]
        if not source.options.index or not dense or table.count_rows() < MIN_INDEXED:
            return
        indexed = {column for index in table.list_indices() for column in index.columns}
        if any(item.column in indexed for item in dense):
            table.optimize(cleanup_older_than=CLEANUP_AGE)
        for item in dense:
            if item.column not in indexed:
                bits = item.dtype == "ubinary"
                config = IvfFlat(distance_type="hamming") if bits else IvfHnswSq(distance_type="cosine")
                table.create_index(item.column, config=config)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise StorageError(f"{self.address}: LanceDB refuses ({first_line(error)})") from error


def _type(item: VectorFormat) -> pa.DataType:
    """The type of a column: LanceDB searches lists of fixed size, and lists of them."""
    if isinstance(item, EmbeddingFormat):
        return pa.list_(pa.type_for_alias(item.codec.arrow), item.width)
    return _fixed(item).field().type


def _fixed(item: VectorFormat) -> VectorFormat:
    return replace(item, list_type="fixed_size_list") if isinstance(item, MultiVectorFormat) else item


def _array(item: VectorFormat, vectors: Any) -> pa.Array:
    """The vectors of :attr:`Rows.vectors` in this type."""
    if isinstance(item, EmbeddingFormat):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), item.width)
    return _fixed(item).array(vectors)


def _kinds(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}
