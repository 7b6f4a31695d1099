"""The rows of one fragment, slice after slice: what a read task does."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.arrow import open_arrow
from kosbert_ray.corpus.cast import cast_column
from kosbert_ray.corpus.columns import Columns, path_keys
from kosbert_ray.corpus.fragments import Fragment, Limits, Slice, cut
from kosbert_ray.corpus.lines import LineOptions, read_lines
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.look import INT96_UNIT, check_csv_names, parquet_schema
from kosbert_ray.corpus.names import Place, composed, locate, own_name, require, values_at
from kosbert_ray.corpus.records import Layout, csv_layout, parse
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT, rows_from_arrays, rows_from_values
from kosbert_ray.corpus.text import broken_bytes
from kosbert_ray.errors import InputChanged, InputError, StorageError, first_line
from kosbert_ray.storage import Storage, storage_errors

BATCH_ROWS = 4096
BATCH_BYTES = 16 * 2**20
# Rows that are decoded at a time. A large value that repeats is stored once and decoded in each row, so that no size in the
# file says how large its rows are.
DECODED_ROWS = 128
PREFETCH_BYTES = 64 * 2**20
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class FragmentReader:
    """Reads fragments of one corpus; small and picklable, so that it travels to read tasks."""

    storage: Storage
    columns: Columns
    options: LineOptions
    limits: Limits

    def slices(self, fragment: Fragment, done: Collection[int] = ()) -> Iterator[tuple[Slice, pa.Table]]:
        """The slices of ``fragment`` in order, with their row tables (see ``rows``), but for those in ``done``.

        Memory: one slice and one block of the file, whatever the file's size.

        Args:
            fragment: what to read.
            done: indices of the slices that need not be yielded.

        Raises:
            InputChanged: the file is no longer the one that was listed. What was yielded before was that one's.
            InputError: the file is broken.
            StorageError: the file cannot be read.
        """
        where = self.storage.url(fragment.file.name)
        try:
            for piece, table in self._slices(fragment):
                if piece.index not in done:
                    self._require_unchanged(fragment.file)
                    yield piece, table
        except (InputError, StorageError) as error:
            self._require_unchanged(fragment.file)  # what cannot be read may be what was put in its place
            if str(error).startswith(where):
                raise
            raise type(error)(f"{where}: {error}") from error

    def _require_unchanged(self, file: InputFile) -> None:
        try:
            now = self.storage.entry(file.name)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise InputChanged(f"{self.storage.url(file.name)}: removed since the run began") from error
            raise
        if (now.size, now.version) != file.listed:
            raise InputChanged(f"{self.storage.url(file.name)}: changed since the run began")

    def _slices(self, fragment: Fragment) -> Iterator[tuple[Slice, pa.Table]]:
        readers = {"parquet": self._parquet_rows, "arrow": self._arrow_rows}
        rows = readers.get(fragment.file.format, self._line_rows)(fragment)
        nothing = rows_from_values((), self.columns.source, self.columns.stored)  # an empty fragment has columns too
        yield from cut(
            fragment, self._with_partitions(fragment, chain([(nothing, 0)], rows)), fragment.limits or self.limits
        )

    def _with_partitions(self, fragment: Fragment, rows: Iterable[tuple[pa.Table, int]]) -> Iterable[tuple[pa.Table, int]]:
        """The rows with the columns that the path tells of."""
        if not self.columns.partitions:
            yield from rows
            return
        keys = path_keys(self.storage.url(fragment.file.name))
        for table, read in rows:
            for name in self.columns.partitions:
                value = pa.scalar(keys.get(composed(name)), pa.string())
                table = table.append_column(name, pa.repeat(value, table.num_rows))
            yield table.select([TEXT, POSITION, REASON, *self.columns.keep.names]), read

    def _arrow_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        position = read = 0
        with open_arrow(self.storage, fragment.file) as stream:
            batches = filter(len, stream.batches)
            first = next(batches, None)
            filled = () if first is None else chain([first], batches)  # without rows, the columns do not matter
            find = _Finder.of(self.columns, stream.schema) if filled else _Finder({})
            for piece in _pieces(filled, find):
                fetched = min(stream.handle.tell(), fragment.file.size)
                yield self._table(piece, position, find), max(0, fetched - read)
                position, read = position + len(piece), max(read, fetched)
        nothing = rows_from_values((), self.columns.source, self.columns.stored)
        yield nothing, fragment.file.size - read

    def _table(self, batch: pa.RecordBatch, position: int, find: _Finder) -> pa.Table:
        """The rows of a batch of the file's own columns, whose first is at ``position``."""
        source = self.columns.source
        texts = {name: find.values(batch, name) for name in source.columns}
        reasons = broken_bytes(texts, pa.nulls(len(batch), pa.string()))
        kept = {field.name: cast_column(find.values(batch, field.name), field, position) for field in self.columns.stored}
        positions = pa.array(np.arange(position, position + len(batch)))
        return rows_from_arrays(source, source.join(texts), positions, reasons, kept)

    def _parquet_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        where = self.storage.url(fragment.file.name)
        position = fragment.start
        file_rows = fragment.file.rows
        assert fragment.row_groups is not None
        groups = list(range(*fragment.row_groups))
        with storage_errors(where), self.storage.open(fragment.file.name) as handle, _broken_parquet(where):
            metadata = pq.read_metadata(handle)
            schema = parquet_schema(metadata)
            find = _Finder.of(self.columns, schema)
            # Prefetching holds all that is asked for at once: of large groups, pages are read as they are needed instead.
            small = _stored_bytes(metadata, groups, find.paths) <= PREFETCH_BYTES
            file = pq.ParquetFile(
                handle,
                metadata=metadata,
                pre_buffer=small,
                buffer_size=0 if small else BUFFER_BYTES,
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
            batches = file.iter_batches(DECODED_ROWS, row_groups=groups, columns=find.paths)
            for piece in _pieces(_regrouped(batches), find):
                table = self._table(piece, position, find)
                position += len(piece)
                yield table, fragment.file.size * len(piece) // file_rows

    def _line_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        file = fragment.file
        layout = Layout()
        if file.format in ("csv", "tsv"):
            layout = csv_layout(self.storage, file, self.options)
            layout = self._named(layout, self.storage.url(file.name))
        # Byte positions are the address in a plain line file; in a compressed one nobody can seek, rows are counted.
        blocks = read_lines(self.storage, file, fragment.start, fragment.stop, header=layout.in_file)
        yield from parse(blocks, file, self.columns.source, self.columns.stored, self.options, layout)

    def _named(self, layout: Layout, where: str) -> Layout:
        """The layout with the columns to read under the names that they were asked for by."""
        names = layout.names
        if not names:  # only blank lines
            return layout
        try:
            check_csv_names(names, self.columns.read)
            require(self.columns.source.columns, lambda name: own_name(name, names) is not None, names, "input.text")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        asked = {own: name for name in self.columns.read if (own := own_name(name, names)) is not None}
        return replace(layout, names=tuple(asked.get(name, name) for name in names), header=names)


@dataclass(frozen=True)
class _Finder:
    """Where the columns to read stand in one file; those that it lacks are null."""

    places: dict[str, Place | None]

    @staticmethod
    def of(columns: Columns, schema: pa.Schema) -> _Finder:
        """Raises InputError if the text columns are not there."""
        places = {name: locate(name, schema) for name in columns.read}
        require(columns.source.columns, lambda name: places[name] is not None, schema.names, "input.text")
        return _Finder(places)

    @property
    def paths(self) -> list[str]:
        """The columns as Parquet names them."""
        return [".".join(place) for place in self.places.values() if place]

    def values(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column of the batch."""
        place = self.places[name]
        return pa.nulls(len(batch)) if place is None else values_at(place, batch)


def _stored_bytes(metadata: pq.FileMetaData, groups: Iterable[int], paths: Iterable[str]) -> int:
    """Bytes of columns in row groups, as they are stored."""
    asked = tuple(paths)
    columns = [
        number
        for number in range(metadata.num_columns)
        if any(_is_within(metadata.schema.column(number).path, path) for path in asked)
    ]
    return sum(
        int(metadata.row_group(group).column(column).total_compressed_size) for group in groups for column in columns
    )


def _is_within(leaf: str, path: str) -> bool:
    return leaf == path or leaf.startswith(f"{path}.")


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of ``BATCH_ROWS`` rows, or fewer where these are large, out of small ones."""
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


def _pieces(batches: Iterable[pa.RecordBatch], find: _Finder) -> Iterator[pa.RecordBatch]:
    """The batches in pieces to convert at a time; what a dictionary holds once may be large in each row."""
    for batch in batches:
        packed = any(pa.types.is_dictionary(find.values(batch.slice(0, 0), name).type) for name in find.places)
        most = DECODED_ROWS if packed else max(1, min(BATCH_ROWS, BATCH_BYTES * len(batch) // max(1, batch.nbytes)))
        for start in range(0, len(batch), most):
            yield batch.slice(start, most)


@contextlib.contextmanager
def _broken_parquet(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: broken Parquet ({first_line(error)})") from error
