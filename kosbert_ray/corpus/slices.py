"""The rows of one fragment, slice after slice: what a read task does."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.lines import LineOptions, read_lines
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.plan import Fragment, Limits, Slice, cut
from kosbert_ray.corpus.records import csv_header, parse
from kosbert_ray.corpus.rows import rows_from_arrays, rows_from_values
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
        if (now.size, now.version) != (file.size, file.version):
            raise InputChanged(f"{self.storage.url(file.name)}: changed since the run began")

    def _slices(self, fragment: Fragment) -> Iterator[tuple[Slice, pa.Table]]:
        rows = self._parquet_rows(fragment) if fragment.file.format == "parquet" else self._line_rows(fragment)
        nothing = rows_from_values((), self.columns.text, self.columns.keep)  # an empty fragment has columns too
        yield from cut(fragment, chain([(nothing, 0)], rows), self.limits)

    def _parquet_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        where = self.storage.url(fragment.file.name)
        keep = self.columns.keep
        position = fragment.start
        file_rows = fragment.file.rows
        assert fragment.row_groups is not None
        with storage_errors(where), self.storage.open(fragment.file.name) as handle, _broken_parquet(where):
            batches = pq.ParquetFile(handle, pre_buffer=True).iter_batches(
                PARQUET_BATCH_ROWS, row_groups=list(range(*fragment.row_groups)), columns=self.columns.read
            )
            for batch in batches:
                text = batch.column(self.columns.text).cast(pa.large_string())
                table = rows_from_arrays(
                    text,
                    pa.array(np.arange(position, position + len(batch))),
                    pa.nulls(len(batch), pa.string()),
                    {field.name: batch.column(field.name).cast(field.type) for field in keep},
                )
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
        yield from parse(blocks, file, self.columns.text, self.columns.keep, self.options, header)


@contextlib.contextmanager
def _broken_parquet(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: broken Parquet ({first_line(error)})") from error
