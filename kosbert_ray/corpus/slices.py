"""The rows of one fragment, slice after slice: what a read task does."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.arrow import open_arrow
from kosbert_ray.corpus.columns import Columns, path_keys
from kosbert_ray.corpus.lines import LineOptions, read_lines
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.plan import Fragment, Limits, Slice, cut
from kosbert_ray.corpus.records import csv_header, parse
from kosbert_ray.corpus.rows import POSITION, REASON, TEXT, rows_from_arrays, rows_from_values
from kosbert_ray.errors import InputChanged, InputError, StorageError, first_line
from kosbert_ray.storage import Storage, storage_errors

PARQUET_BATCH_ROWS = 4096


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
        try:
            for piece, table in self._slices(fragment):
                if piece.index not in done:
                    self._require_unchanged(fragment.file)
                    yield piece, table
        except (InputError, StorageError):
            self._require_unchanged(fragment.file)  # what cannot be read may be what was put in its place
            raise

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
                table = table.append_column(name, pa.repeat(pa.scalar(keys[name], pa.string()), table.num_rows))
            yield table.select([TEXT, POSITION, REASON, *self.columns.keep.names]), read

    def _arrow_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        position = read = 0
        with open_arrow(self.storage, fragment.file) as stream:
            for batch in stream.batches:
                for start in range(0, len(batch), PARQUET_BATCH_ROWS):
                    piece = batch.slice(start, PARQUET_BATCH_ROWS)
                    fetched = min(stream.handle.tell(), fragment.file.size)
                    yield self._table(piece, position), max(0, fetched - read)
                    position, read = position + len(piece), max(read, fetched)
        nothing = rows_from_values((), self.columns.source, self.columns.stored)
        yield nothing, fragment.file.size - read

    def _table(self, batch: pa.RecordBatch, position: int) -> pa.Table:
        """The rows of a batch of the file's own columns, whose first is at ``position``."""
        return rows_from_arrays(
            self.columns.source,
            self.columns.source.join({name: batch.column(name) for name in self.columns.source.columns}),
            pa.array(np.arange(position, position + len(batch))),
            pa.nulls(len(batch), pa.string()),
            {field.name: batch.column(field.name).cast(field.type) for field in self.columns.stored},
        )

    def _parquet_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        where = self.storage.url(fragment.file.name)
        position = fragment.start
        file_rows = fragment.file.rows
        assert fragment.row_groups is not None
        with storage_errors(where), self.storage.open(fragment.file.name) as handle, _broken_parquet(where):
            batches = pq.ParquetFile(handle, pre_buffer=True).iter_batches(
                PARQUET_BATCH_ROWS, row_groups=list(range(*fragment.row_groups)), columns=self.columns.read
            )
            for batch in batches:
                table = self._table(batch, position)
                position += len(batch)
                yield table, fragment.file.size * len(batch) // file_rows

    def _line_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        file = fragment.file
        header = csv_header(self.storage, file, self.options) if file.format in ("csv", "tsv") else []
        missing = [name for name in self.columns.read if header and name not in header]
        if missing:
            raise InputError(
                f"{self.storage.url(file.name)}: no column {missing[0]!r}; it has {', '.join(map(repr, header))}"
            )
        # Byte positions are the address in a plain line file; in a compressed one nobody can seek, rows are counted.
        blocks = read_lines(self.storage, file, fragment.start, fragment.stop)
        yield from parse(blocks, file, self.columns.source, self.columns.stored, self.options, header)


@contextlib.contextmanager
def _broken_parquet(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: broken Parquet ({first_line(error)})") from error
