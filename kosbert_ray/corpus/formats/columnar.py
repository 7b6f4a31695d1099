"""Helpers for formats that store columns with a schema: Parquet and Arrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kosbert_ray.corpus.cast import cast_column
from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Wanted
from kosbert_ray.corpus.names import Place, locate, require, type_at, values_at
from kosbert_ray.corpus.row_table import rows_from_arrays
from kosbert_ray.corpus.sniff import HEAD_BYTES, recognise
from kosbert_ray.corpus.text import broken_bytes, require_strings
from kosbert_ray.corpus.types import Seen, plain
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.storage import Storage

BATCH_ROWS = 4096
BATCH_BYTES = 16 * 2**20
# Rows to decode at a time. A large value that repeats is stored once and decoded in every row, so nothing in the file says
# how large its rows are.
DECODED_ROWS = 128


# -- inspecting ----------------------------------------------------------------------------------------------------


def check_schema(schema: pa.Schema, wanted: Wanted) -> dict[str, Seen]:
    """Returns the types of the columns to keep.

    Raises:
        InputError: a text column is missing or not a string.
    """
    places = {name: locate(name, schema) for name in wanted.text.columns}
    require(wanted.text.columns, lambda name: places[name] is not None, schema.names, "input.text")
    problem = require_strings(wanted.text, [(name, type_at(place, schema)) for name, place in places.items() if place])
    if problem:
        raise InputError(problem)
    return kept_types(schema, wanted)


def kept_types(schema: pa.Schema, wanted: Wanted) -> dict[str, Seen]:
    """The types of the columns to keep that the schema has."""
    types = {}
    for name in wanted.keep:
        place = locate(name, schema)
        if place:
            kind = plain(type_at(place, schema))
            types[name] = Seen(kind, wide=bool(pa.types.is_integer(kind) and kind.bit_width == 64))
    return types


def recognised(storage: Storage, file: InputFile, magic: tuple[bytes, ...]) -> str | None:
    """The actual kind of a file that does not begin with its format's magic bytes; None if it does or is unknown."""
    with contextlib.suppress(StorageError):
        head = storage.read_head(file.name, HEAD_BYTES)
        return None if head.startswith(magic) else recognise(head)
    return None


# -- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finder:
    """The places of the columns to read in one file; columns that the file lacks are null."""

    places: dict[str, Place | None]

    @staticmethod
    def of(columns: Columns, schema: pa.Schema) -> Finder:
        """Raises InputError if a text column is missing."""
        places = {name: locate(name, schema) for name in columns.read}
        require(columns.source.columns, lambda name: places[name] is not None, schema.names, "input.text")
        return Finder(places)

    @property
    def paths(self) -> list[str]:
        """Dotted paths of the columns, as Parquet spells them."""
        return [".".join(place) for place in self.places.values() if place]

    def values(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column of the batch."""
        place = self.places[name]
        return pa.nulls(len(batch)) if place is None else values_at(place, batch)


def row_table(batch: pa.RecordBatch, position: int, find: Finder, columns: Columns) -> pa.Table:
    """The row table of a batch whose first row has the number ``position``."""
    texts = {name: find.values(batch, name) for name in columns.source.columns}
    reasons = broken_bytes(texts, pa.nulls(len(batch), pa.string()))
    kept = {field.name: cast_column(find.values(batch, field.name), field, position) for field in columns.stored}
    positions = pa.array(np.arange(position, position + len(batch)))
    joined = columns.source.join(texts)
    return rows_from_arrays(columns.source, joined, positions, reasons, kept, columns.source.original(texts, joined))


def regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Joins small batches into batches of ``BATCH_ROWS`` rows or ``BATCH_BYTES`` bytes, whichever comes first."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= BATCH_ROWS or size >= BATCH_BYTES:
            yield held[0] if len(held) == 1 else pa.concat_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield held[0] if len(held) == 1 else pa.concat_batches(held)


def pieces(batches: Iterable[pa.RecordBatch], find: Finder) -> Iterator[pa.RecordBatch]:
    """Splits batches into pieces that are small once converted; a dictionary's values may be large in every row."""
    for batch in batches:
        packed = any(pa.types.is_dictionary(find.values(batch.slice(0, 0), name).type) for name in find.places)
        most = DECODED_ROWS if packed else max(1, min(BATCH_ROWS, BATCH_BYTES * len(batch) // max(1, batch.nbytes)))
        for start in range(0, len(batch), most):
            yield batch.slice(start, most)
