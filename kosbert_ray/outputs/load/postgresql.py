"""PostgreSQL with pgvector.

A first load copies each shard in a transaction of its own, with its row in ``kosbert_ray_loads``, over several connections;
indexes come after. A later load copies into a staging table and changes the table in one transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.types import is_binary, is_string, plain
from kosbert_ray.encoder.options import usable_cores
from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.outputs.load.base import (
    ID,
    OUTPUT,
    SHARD,
    Rows,
    Source,
    VectorTypes,
    Work,
    require_own,
    require_types,
    require_vector_types,
)
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.vectors.kinds import DENSE, SPARSE
from kosbert_ray.vectors.sparse import SparseVectors

try:
    import psycopg
    from pgvector import Bit, HalfVector, SparseVector, Vector
    from pgvector.psycopg import register_vector
    from psycopg import sql
except ImportError as error:
    raise UsageError("postgresql: not installed; pip install 'kosbert-ray[postgresql]'") from error

LOADS = "kosbert_ray_loads"
MANY_ROWS = 100_000  # that are worth the start of processes
CONNECTIONS = 4  # of a first load, at most one for each core
VECTOR_TYPES: VectorTypes = {
    DENSE: {"float32": "vector", "float16": "halfvec", "ubinary": "bit"},
    SPARSE: {"float32": "sparsevec", "float16": "sparsevec"},
}
INDEXED = {"vector": 2000, "halfvec": 4000, "bit": 64000}  # dimensions that pgvector 0.8 indexes
MAX_NONZERO, INDEXED_NONZERO = 16_000, 1000  # numbers of a sparsevec that pgvector 0.8 stores and indexes
OPERATORS = {
    "vector": "vector_cosine_ops",
    "halfvec": "halfvec_cosine_ops",
    "bit": "bit_hamming_ops",
    "sparsevec": "sparsevec_ip_ops",
}
NUL = "\0"
MAX_NAME = 63  # bytes of an identifier

SPELLED = {
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
}

# What pgvector writes in binary of the rows of a shard, from their vectors (``Rows.vectors``) and the dimension.
MAKE: dict[str, Callable[[Any, int], Iterator[object]]] = {
    "vector": lambda rows, _dimension: map(Vector, rows),
    "halfvec": lambda rows, _dimension: map(HalfVector, rows),
    "bit": lambda rows, _dimension: (Bit(row.tobytes()) for row in rows),
    "sparsevec": lambda rows, dimension: _sparse(rows, dimension),
}

Connection = psycopg.Connection[tuple[object, ...]]


def _sparse(vectors: SparseVectors, dimension: int) -> Iterator[SparseVector]:
    indices, values = vectors.indices.tolist(), vectors.values.tolist()
    for start, end in pairwise(vectors.offsets.tolist()):
        yield SparseVector(dict(zip(indices[start:end], values[start:end], strict=True)), dimension)


def spell(kind: pa.DataType) -> str | None:
    """PostgreSQL's type for an Arrow type; None if it has none that keeps every value."""
    kind = plain(kind)
    types = pa.types
    if is_string(kind):
        return "text"
    if is_binary(kind):
        return "bytea"
    simple: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
        (types.is_boolean, "boolean"),
        (types.is_int8, "smallint"),
        (types.is_uint8, "smallint"),
        (types.is_int16, "smallint"),
        (types.is_uint16, "integer"),
        (types.is_int32, "integer"),
        (types.is_uint32, "bigint"),
        (types.is_int64, "bigint"),
        (types.is_uint64, "numeric"),
        (types.is_float16, "real"),
        (types.is_float32, "real"),
        (types.is_float64, "double precision"),
        (types.is_decimal, "numeric"),
        (types.is_date, "date"),
        (types.is_null, "text"),
    )
    for check, name in simple:
        if check(kind):
            return name
    if types.is_timestamp(kind) and kind.unit != "ns":
        return "timestamptz" if kind.tz else "timestamp"
    if types.is_time(kind) and kind != pa.time64("ns"):
        return "time"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = None if types.is_nested(kind.value_type) else spell(kind.value_type)
        return item and f"{item}[]"
    return None


def _formatted(kind: str) -> str:
    """A type as PostgreSQL's ``format_type`` spells it."""
    name = kind.removesuffix("[]")
    return SPELLED.get(name, name) + kind[len(name) :]


def open(address: str, source: Source) -> PostgreSQL:
    """Connects; the password comes from ``PGPASSWORD`` or ``~/.pgpass``."""
    parts = urlsplit(address)
    if parts.password or "password" in parse_qs(parts.query):
        raise UsageError("postgresql: leave the password out of the address; set PGPASSWORD, or write it to ~/.pgpass")
    return PostgreSQL(address, source)


class PostgreSQL:
    """A table of a PostgreSQL database."""

    def __init__(self, address: str, source: Source) -> None:
        self._source, self._url = source, address
        self.address = f"{address.partition('?')[0]}, table {source.options.name}"
        self._connection = self._connect()
        *schema, table = source.options.name.split(".")
        for name in (*schema, table):
            if not name or len(name.encode()) > MAX_NAME:
                raise UsageError(f"--table {source.options.name}: not a name of a table")
        self._schema = schema
        self._table = sql.Identifier(*schema, table)
        self._loads = sql.Identifier(*schema, LOADS)
        self._staging = sql.Identifier(*schema, f"kosbert_staging_{source.identity[:16]}")
        # Names of indexes are unique in a schema and cut at 63 bytes.
        digest = hashlib.sha256(table.encode()).hexdigest()[:8]
        self._short = f"{re.sub(r'[^A-Za-z0-9_]', '_', table)[:24]}_{digest}"

    def _connect(self) -> Connection:
        try:
            connection = psycopg.connect(self._url, autocommit=True, application_name="kosbert-ray")
            found = connection.execute("SELECT extname FROM pg_extension WHERE extname = 'vector'").fetchone()
            if not found:
                connection.execute("CREATE EXTENSION vector")
            register_vector(connection)
        except psycopg.Error as error:
            what = "the extension vector (pgvector) is not there" if "extension" in str(error) else "cannot connect"
            raise StorageError(f"{self.address}: {what} ({first_line(error)})") from error
        return connection

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    # -- what fits ---------------------------------------------------------------------------------------------------

    def require_fitting(self) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        source = self._source
        for item in source.formats:
            if self._vectors[item.column] in INDEXED and source.options.index:
                self._require_indexed(item)
        with self._errors():
            self._require_own_table()
            for item in source.formats:
                if item.kind == SPARSE:
                    self._require_nonzero(item)

    @cached_property
    def _vectors(self) -> dict[str, str]:
        """PostgreSQL's types of the columns of vectors; raises UsageError if it lacks one."""
        return require_vector_types(self._source, VECTOR_TYPES, "pgvector")

    @cached_property
    def _columns(self) -> dict[str, str]:
        """PostgreSQL's types of all columns; raises UsageError if it lacks one."""
        columns = require_types(self._source.schema, spell, "PostgreSQL")
        if ID in columns:
            columns[ID] = "uuid"
        vectors = {item.column: f"{self._vectors[item.column]}({item.dimension})" for item in self._source.formats}
        return {OUTPUT: "uuid", SHARD: "text", **columns, **vectors}

    def _require_indexed(self, item: VectorFormat) -> None:
        """Raises UsageError if pgvector cannot index dense vectors of so many dimensions."""
        kind, output = self._vectors[item.column], self._source.output
        most = INDEXED[kind]
        if item.dimension <= most:
            return
        halves = [other.column for other in output.formats if other.kind == DENSE and other.dtype == "float16"]
        half = f"load --column {halves[0]}" if halves else "embed with output.dtype=float32,float16 and load that column"
        remedy = f"{half} (halfvec is indexed up to {INDEXED['halfvec']:,}), or " if kind == "vector" else ""
        raise UsageError(
            f"column {item.column!r} has {item.dimension:,} dimensions, and pgvector indexes {kind} up to {most:,}; "
            f"{remedy}load with --no-index"
        )

    def _require_nonzero(self, item: VectorFormat) -> None:
        """Raises UsageError if pgvector cannot store or index the sparse vectors of the rows that are to be loaded."""
        source = self._source
        most = INDEXED_NONZERO if source.options.index else MAX_NONZERO
        top_k = source.output.job.output.sparse_top_k
        if top_k and top_k <= most:
            return
        # Rows that are there were stored, and those of a table with an index were indexed.
        checked = not source.options.index or self._there(sql.Identifier(*self._schema, self._hnsw(item.column)))
        held = self._counts() if checked and self._there(self._table) else {}
        shards = [name for name, receipt in source.receipts.items() if held.get(name) != receipt.rows]
        found = source.max_nonzero(item, shards)
        if found > most:
            no_index = "load with --no-index, or " if found <= MAX_NONZERO else ""
            raise UsageError(
                f"column {item.column!r} has vectors of up to {found:,} numbers, and pgvector indexes up to "
                f"{INDEXED_NONZERO:,} and stores up to {MAX_NONZERO:,}; {no_index}embed with output.sparse_top_k={most}"
            )

    def _require_own_table(self) -> None:
        ours = {name: _formatted(kind) for name, kind in self._columns.items()}
        if not self._there(self._table):
            return
        columns = self._connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(%s) "
            "AND attnum > 0 AND NOT attisdropped",
            [self._table.as_string(self._connection)],
        )
        theirs = {str(name): str(kind) for name, kind in columns}
        if OUTPUT not in theirs or not self._there(self._loads):
            require_own(self.address, None, ours, False)
        models = self._connection.execute(
            sql.SQL("SELECT DISTINCT model FROM {} WHERE table_name = %s").format(self._loads), [self._source.options.name]
        )
        require_own(self.address, theirs, ours, all(model == self._source.output.vectors_identity for (model,) in models))

    def _there(self, name: sql.Identifier) -> bool:
        found = self._connection.execute("SELECT to_regclass(%s)", [name.as_string(self._connection)]).fetchone()
        return bool(found and found[0])

    # -- what is there -----------------------------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Counts the rows of this output by shard; a shard without its row in ``kosbert_ray_loads`` counts as partial."""
        if not self._there(self._table):
            return {}
        with self._errors():
            self._wait_for_killed()
            return self._counts()

    def _counts(self) -> dict[str, int]:
        counts = sql.SQL("SELECT {}, count(*) FROM {} WHERE {} = %s GROUP BY 1").format(
            sql.Identifier(SHARD), self._table, sql.Identifier(OUTPUT)
        )
        rows = {str(shard): int(str(count)) for shard, count in self._connection.execute(counts, [self._tag])}
        recorded = sql.SQL("SELECT shard FROM {} WHERE table_name = %s AND output = %s").format(self._loads)
        known = {shard for (shard,) in self._connection.execute(recorded, self._place)}
        return {shard: count if shard in known else 0 for shard, count in rows.items()}

    def others(self) -> int:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        if not self._there(self._table):
            return 0
        with self._errors():
            count = sql.SQL("SELECT count(*) FROM {} WHERE {} <> %s").format(self._table, sql.Identifier(OUTPUT))
            found = self._connection.execute(count, [self._tag]).fetchone()
        return int(str(found[0])) if found else 0

    @property
    def _lock(self) -> int:
        """Key of the advisory lock that every transaction of a load shares."""
        content = f"{self._source.options.name}\n{self._source.identity}"
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], signed=True)

    def _wait_for_killed(self) -> None:
        """Waits until no transaction of an earlier load is left: a server may commit what a killed client had sent."""
        for function in ("pg_advisory_lock", "pg_advisory_unlock"):
            self._connection.execute(f"SELECT {function}(%s)", [self._lock])

    @contextlib.contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [self._lock])
            yield

    @property
    def _tag(self) -> str:
        return self._source.identity[:32]

    @property
    def _place(self) -> list[object]:
        return [self._source.options.name, self._source.identity]

    # -- changes -----------------------------------------------------------------------------------------------------

    def apply(self, work: Work) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        with self._errors():
            self._create()
            if self._there(sql.Identifier(*self._schema, self._unique)):
                self._replace(work)
            else:
                self._delete(self._connection, work.delete)
                self._copy_all(work.load)
            self._index()

    @property
    def _unique(self) -> str:
        return f"{self._short}_kosbert_key"

    def _hnsw(self, column: str) -> str:
        """Name of the index of a column of vectors."""
        number = [*self._vectors].index(column)
        return f"{self._short}_kosbert_hnsw" + (f"_{number}" if number else "")

    def _create(self) -> None:
        # In this order: a table without ``kosbert_ray_loads`` is taken for another program's.
        self._connection.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (table_name text, output text, shard text, rows bigint, model text, "
                "dimension integer, loaded_at timestamptz DEFAULT now(), PRIMARY KEY (table_name, output, shard))"
            ).format(self._loads)
        )
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in self._columns.items()
        )
        self._connection.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(self._table, columns))

    def _delete(self, connection: Connection, shards: Sequence[str]) -> None:
        if not shards:
            return
        with self._transaction(connection):
            gone = sql.SQL("DELETE FROM {} WHERE {} = %s AND {} = ANY(%s)")
            connection.execute(
                gone.format(self._table, sql.Identifier(OUTPUT), sql.Identifier(SHARD)), [self._tag, list(shards)]
            )
            forgotten = sql.SQL("DELETE FROM {} WHERE table_name = %s AND output = %s AND shard = ANY(%s)")
            connection.execute(forgotten.format(self._loads), [*self._place, list(shards)])

    def _copy_all(self, shards: Sequence[str]) -> None:
        """Copies shards, each in a transaction, in several processes with a connection each."""
        count = min(CONNECTIONS, usable_cores(), len(shards))
        if count < 2 or sum(self._source.receipts[shard].rows for shard in shards) < MANY_ROWS:
            for shard in shards:
                self.copy_shard(shard)
            return
        start = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, start, _start_process, (self._url, self._source)) as pool:
            try:
                for _ in pool.map(_copy_in_process, shards):
                    pass
            except BrokenProcessPool as error:
                raise StorageError(f"{self.address}: a loading process was killed; run the same command again") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def copy_shard(self, shard: str) -> None:
        """Copies a shard and records it in one transaction."""
        with self._errors(), self._transaction(self._connection):
            self._record(self._connection, shard, self._copy(self._connection, self._table, shard))

    def _record(self, connection: Connection, shard: str, rows: int) -> None:
        added = sql.SQL(
            "INSERT INTO {} (table_name, output, shard, rows, model, dimension) VALUES (%s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (table_name, output, shard) DO UPDATE SET rows = excluded.rows, loaded_at = now()"
        )
        source = self._source
        connection.execute(
            added.format(self._loads),
            [*self._place, shard, rows, source.output.vectors_identity, source.formats[0].dimension],
        )

    def _copy(self, connection: Connection, table: sql.Identifier, shard: str) -> int:
        """Copies the rows of a shard in the binary format; returns their number."""
        rows = self._source.rows(shard)
        columns: list[list[object]] = [] if rows.ids is None else [[*rows.ids]]
        columns += [self._values(rows, field) for field in rows.kept.schema]
        formats = self._source.formats
        vectors = [MAKE[self._vectors[item.column]](rows.vectors[item.column], item.dimension) for item in formats]
        names = sql.SQL(", ").join(map(sql.Identifier, self._columns))
        kinds = [kind.partition("(")[0] for kind in self._columns.values()]
        tag = uuid.UUID(self._tag)
        with connection.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, names)) as copy:
            copy.set_types(kinds)
            for values in zip(*columns, *vectors, strict=True):
                copy.write_row((tag, shard, *values))
        return int(rows.kept.num_rows)

    def _values(self, rows: Rows, field: pa.Field) -> list[object]:
        """The values of a column as psycopg takes them."""
        column = rows.kept[field.name]
        kind = plain(field.type)
        if is_string(kind):
            column = column.cast(pa.large_string())
            bad = pc.match_substring(column, NUL)
            if pc.any(bad).as_py():
                if not self._source.options.strip_nul:
                    row = int(np.flatnonzero(pc.fill_null(bad, False).to_numpy())[0])
                    raise InputError(
                        f"{self._source.output.storage.url(rows.shard)}: row {row:,}: column {field.name!r} contains NUL "
                        "(\\0), which PostgreSQL cannot store; add --strip-nul"
                    )
                column = pc.replace_substring(column, NUL, "")
        return list(column.to_pylist())

    def _replace(self, work: Work) -> None:
        """Loads into a staging table, then deletes and inserts in one transaction."""
        run = self._connection.execute
        run(sql.SQL("DROP TABLE IF EXISTS {}").format(self._staging))
        if not (work.load or work.delete):
            return
        run(sql.SQL("CREATE UNLOGGED TABLE {} (LIKE {})").format(self._staging, self._table))
        counts = {shard: self._copy(self._connection, self._staging, shard) for shard in work.load}
        with self._transaction(self._connection):
            self._delete(self._connection, work.delete)
            run(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(self._table, self._staging))
            for shard, rows in counts.items():
                self._record(self._connection, shard, rows)
            run(sql.SQL("DROP TABLE {}").format(self._staging))

    def _index(self) -> None:
        """Makes the indexes that are not there: of ids, of shards, of vectors."""
        run, name = self._connection.execute, sql.Identifier
        keys = sql.SQL(", ").join(map(sql.Identifier, (OUTPUT, *self._source.key)))
        create = "CREATE {} INDEX IF NOT EXISTS {} ON {} ({})"
        shards = sql.SQL(", ").join(map(sql.Identifier, (OUTPUT, SHARD)))
        plain_index = f"{self._short}_kosbert_shard"
        run(sql.SQL(create).format(sql.SQL(""), name(plain_index), self._table, shards))
        if self._source.options.index:
            vectors = sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ({} {})")
            for column, kind in self._vectors.items():
                run(vectors.format(name(self._hnsw(column)), self._table, name(column), sql.SQL(OPERATORS[kind])))
        # Last: its presence says that the first load is complete.
        run(sql.SQL(create).format(sql.SQL("UNIQUE"), name(self._unique), self._table, keys))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise StorageError(f"{self.address}: PostgreSQL refuses ({first_line(error)})") from error


_of_process: list[PostgreSQL] = []  # of a process of the pool


def _start_process(address: str, source: Source) -> None:
    _of_process.append(PostgreSQL(address, source))


def _copy_in_process(shard: str) -> None:
    _of_process[0].copy_shard(shard)
