"""Shared by all destinations: their protocol, and what is loaded of an output."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from kosbert_ray.corpus.types import as_parquet, parse_type
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.row_ids import CHUNK, RowIds, require_unique
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.vectors import open_shard, read_blocks
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named

# Columns of a destination beside those of the output.
OUTPUT, SHARD, ID = "kosbert_output", "kosbert_shard", "kosbert_id"
# Databases that take the vectors that another one lacks, for messages.
TAKEN_BY: dict[Kind, str] = {SPARSE: "PostgreSQL or Qdrant", MULTI_VECTOR: "Qdrant or LanceDB"}

# A destination's type of vectors by kind and ``VectorFormat.dtype``.
VectorTypes = Mapping[Kind, Mapping[str, str]]


@dataclass(frozen=True)
class Rows:
    """The rows of one shard that have a vector.

    Attributes:
        shard: its name.
        kept: the kept columns, ``n`` rows.
        vectors: of each column: dense vectors as they are stored, ``[n, width]``, ``SparseVectors`` or ``TokenVectors``.
        ids: the UUIDs of the rows; None if a kept column is the id.
    """

    shard: str
    kept: pa.Table
    vectors: Mapping[str, Any]
    ids: list[uuid.UUID] | None

    @property
    def table(self) -> pa.Table:
        """The kept columns, after the column of the ids if there is one."""
        if self.ids is None:
            return self.kept
        return self.kept.add_column(0, ID, pa.array(map(str, self.ids), pa.string()))


@dataclass(frozen=True)
class LoadOptions:
    """Options of a load.

    Attributes:
        name: of the table or collection.
        id_column: the kept column that identifies a row; None for UUIDs of the rows' places in the input.
        columns: the columns of vectors; empty for the first of each kind.
        index: whether to build an index for search.
        strip_nul: remove NUL from texts where the destination cannot store it.
    """

    name: str
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    index: bool = True
    strip_nul: bool = False


@dataclass(frozen=True)
class Source:
    """A complete output to load, with the manifest as it was when the load began.

    Attributes:
        output: the output.
        options: the options of the load.
        formats: the columns of vectors, in the order of the output.
        identity: identifies the output; see :attr:`Output.identity`.
        row_ids: gives the ids of the rows, where no kept column is the id.
    """

    output: Output
    options: LoadOptions
    formats: tuple[VectorFormat, ...]
    identity: str
    row_ids: RowIds = field(repr=False)

    @staticmethod
    def of(output: Output, options: LoadOptions) -> Source:
        """Opens the source.

        Raises:
            InputError: the output is not complete, or lacks a column.
            UsageError: an option does not fit.
            StorageError: the output cannot be read.
        """
        output.require_complete()
        formats = _chosen(output, options.columns)
        if options.id_column is not None and options.id_column not in output.columns:
            kept = ", ".join(output.columns) or "none"
            raise UsageError(f"--id {options.id_column}: not among the kept columns ({kept})")
        for name in (OUTPUT, SHARD, ID):
            if name in output.columns:
                raise InputError(f"{output.storage.url()}: has a column {name!r}, which a load adds itself")
        return Source(output, options, formats, output.identity, RowIds(output))

    @property
    def chunked(self) -> bool:
        """True if rows are chunks of texts."""
        return self.output.job.chunked

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row of the output."""
        column = self.options.id_column
        return (ID,) if column is None else (column, CHUNK) if self.chunked else (column,)

    @cached_property
    def receipts(self) -> dict[str, Receipt]:
        """The shards to load, by name."""
        return {receipt.shard: receipt for receipt in self.output.receipts if receipt.shard and receipt.rows}

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema of :attr:`Rows.table`: the kept columns, and ``kosbert_id`` unless one of them is the id."""
        shards = [*self.receipts]
        if shards:
            with open_shard(self.output.storage, shards[0]) as file:
                kept = [file.schema_arrow.field(name) for name in self.output.columns]
        else:
            named = (column.partition(": ") for column in self.output.record.kept)
            kept = [pa.field(name, as_parquet(parse_type(kind))) for name, _, kind in named]
        own = [pa.field(ID, pa.string(), nullable=False)] if self.options.id_column is None else []
        return pa.schema([*own, *kept])

    def require_unique_ids(self) -> None:
        """Raises InputError if a kept column is the id and a value is null or occurs twice."""
        if self.options.id_column is not None:
            require_unique(self.output, [*self.receipts], self.key)

    def rows(self, shard: str) -> Rows:
        """Reads a shard. Rows without a vector are left out.

        Raises:
            StorageError: it cannot be read.
        """
        output, columns = self.output, [item.column for item in self.formats]
        with open_shard(output.storage, shard) as file:
            table = file.read([*output.columns, *columns])
            vectors = {item.column: _stored(item, table[item.column].combine_chunks()) for item in self.formats}
        valid = table[columns[0]].is_valid().combine_chunks()  # a row has a vector of each kind, or of none
        kept = table.select(list(output.columns))
        ids = None if self.options.id_column is not None else self.row_ids.of(shard, kept, valid)
        return Rows(shard, kept.filter(valid), vectors, ids)

    def max_nonzero(self, item: VectorFormat, shards: Sequence[str]) -> int:
        """The most numbers that a vector of a sparse column has in some shards, which are read.

        Raises:
            StorageError: a shard cannot be read.
        """

        def read(shard: str) -> int:
            blocks = read_blocks(self.output.storage, shard, item)
            return max((int(vectors.counts.max()) for vectors, rows in blocks if len(rows)), default=0)

        with ThreadPoolExecutor(reader_threads(self.output.storage)) as pool:
            return max(pool.map(read, shards), default=0)


def _chosen(output: Output, columns: Sequence[str]) -> tuple[VectorFormat, ...]:
    """The formats of some columns of vectors, by default of the first of each kind; raises InputError."""
    if not columns:
        return tuple(map(output.kind_format, output.kinds))
    asked = {output.column_format(name).column for name in columns}
    return tuple(item for item in output.formats if item.column in asked)


def _stored(item: VectorFormat, vectors: pa.Array) -> Any:
    """The vectors of :attr:`Rows.vectors` in a column; raises ValueError if they are not of this format."""
    return item.stored(vectors) if isinstance(item, EmbeddingFormat) else item.matrix(vectors)[0]


@dataclass(frozen=True)
class Work:
    """The changes after which a destination holds the manifest.

    Attributes:
        add: shards that it lacks.
        replace: shards of which it holds another number of rows.
        remove: shards that are no longer in the manifest.
    """

    add: tuple[str, ...]
    replace: tuple[str, ...]
    remove: tuple[str, ...]

    @staticmethod
    def of(source: Source, held: Mapping[str, int]) -> Work:
        """Compares the manifest with the rows by shard that the destination says it holds."""
        expected = {shard: receipt.rows for shard, receipt in source.receipts.items()}
        return Work(
            add=tuple(shard for shard in expected if shard not in held),
            replace=tuple(shard for shard, rows in expected.items() if held.get(shard, rows) != rows),
            remove=tuple(shard for shard in held if shard not in expected),
        )

    @property
    def load(self) -> tuple[str, ...]:
        """Shards to load."""
        return (*self.add, *self.replace)

    @property
    def delete(self) -> tuple[str, ...]:
        """Shards whose rows are to be deleted by their tag."""
        return (*self.replace, *self.remove)


class Destination(Protocol):
    """A table or collection. A module of a destination has a function ``open(address, source) -> Destination``, which
    raises UsageError if a library is missing or the address is wrong, StorageError if it cannot be reached.

    Attributes:
        address: where it is, without a password.
    """

    address: str

    def require_fitting(self) -> None:
        """Checks before anything is written that the source fits.

        Raises:
            UsageError: a column has a type that the destination lacks, or the vectors cannot be indexed.
            InputError: the table holds vectors of another model or dimension, or is not one of kosbert-ray's.
        """
        ...

    def held(self) -> dict[str, int]:
        """The rows of this output that it holds, by shard, as the destination itself counts them."""
        ...

    def apply(self, work: Work) -> None:
        """Loads and deletes. When this is killed at any time, the same load completes it.

        Raises:
            StorageError: the destination refuses, or a shard cannot be read.
            InputError: a value cannot be stored; names its shard and row.
        """
        ...

    def others(self) -> int:
        """Counts the rows of other outputs that it holds."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


def require_vector_types(source: Source, types: VectorTypes, name: str) -> dict[str, str]:
    """The destination's type of each column of vectors.

    Args:
        source: what is loaded.
        types: the destination's types.
        name: of the destination, for the message.

    Raises:
        UsageError: it has none, or the dot product of the stored numbers means nothing.
    """
    return {item.column: _vector_type(source, item, types, name) for item in source.formats}


def _vector_type(source: Source, item: VectorFormat, types: VectorTypes, name: str) -> str:
    fitting = [other for other in source.output.formats if other.dtype in types.get(other.kind, ())]
    if item.kind not in types:
        left = [other for other in source.formats if other in fitting] or fitting
        remedies = [f"load {_column_options(left)}"] if left else []
        remedy = ", or ".join([*remedies, f"load it into {TAKEN_BY[item.kind]}"])
        raise UsageError(f"column {item.column!r} holds {named([item.kind])} vectors, which {name} does not take; {remedy}")
    dense = [other for other in fitting if other.kind == DENSE][:1]
    left = dense + [other for other in source.formats if other.kind != DENSE and other in fitting]
    remedy = f"load {_column_options(left)}" if left else "embed with --set output.dtype=float32"
    if isinstance(item, EmbeddingFormat) and item.codec.needs_ranges:
        raise UsageError(
            f"column {item.column!r} holds {item.dtype} codes with a range for each dimension, whose dot product is no "
            f"cosine; {remedy}"
        )
    if item.dtype not in types[item.kind]:
        raise UsageError(f"column {item.column!r} holds {item.dtype}, which {name} has no type for; {remedy}")
    return types[item.kind][item.dtype]


def _column_options(formats: Sequence[VectorFormat]) -> str:
    return " ".join(f"--column {item.column}" for item in formats)


def require_types(schema: pa.Schema, spell: Callable[[pa.DataType], str | None], name: str) -> dict[str, str]:
    """The destination's type of each column.

    Args:
        schema: the columns.
        spell: gives the destination's type of an Arrow type, None if there is none.
        name: of the destination, for the message.

    Raises:
        UsageError: a column has a type that the destination lacks.
    """
    found: dict[str, str] = {}
    for column in schema:
        kind = spell(column.type)
        if kind is None:
            raise UsageError(
                f"column {column.name!r} is {column.type}, which {name} has no type for; embed it with another type "
                f"(--set 'input.types={{{column.name}: string}}'), or without it"
            )
        found[column.name] = kind
    return found


def require_own(address: str, theirs: Mapping[str, str] | None, ours: Mapping[str, str], same_model: bool) -> None:
    """Checks that a table can take the rows of an output.

    Args:
        address: of the table, for messages.
        theirs: name and type of each of its columns; None if it was not made by ``kosbert-ray load``.
        ours: the same of the output.
        same_model: whether its vectors are of the output's model.

    Raises:
        InputError: it was not made by a load, or has other columns or vectors of another model.
    """
    if theirs is None:
        found = "the table was not made by kosbert-ray load"
    elif (ID in theirs) != (ID in ours):
        with_ids = "UUIDs" if ID in theirs else "the ids of a column (--id)"
        found = f"was loaded with {with_ids}, and this load has others"
    elif theirs != ours:
        name = min({*theirs.items()} ^ {*ours.items()})[0]
        found = (
            f"its column {name!r} is {theirs.get(name, 'missing')}, and that of the output is {ours.get(name, 'missing')}"
        )
    elif not same_model:
        found = "holds vectors of another model"
    else:
        return
    raise InputError(f"{address}: {found}; choose another with --table")


def batches(shards: Sequence[str], size: int) -> list[Sequence[str]]:
    """Groups of at most ``size`` shards."""
    return [shards[first : first + size] for first in range(0, len(shards), size)]
