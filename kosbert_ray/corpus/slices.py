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
from kosbert_ray.corpus.plan import Fragment, Limits, Slice, cut
from kosbert_ray.corpus.records import csv_header, parse
from kosbert_ray.corpus.rows import rows_from_arrays, rows_from_values
from kosbert_ray.errors import InputError
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
            InputError: the file is broken or not as the listing and its footer said.
            StorageError: the file cannot be read.
        """
        rows = self._parquet_rows(fragment) if fragment.file.format == "parquet" else self._line_rows(fragment)
        nothing = rows_from_values((), self.columns.text, self.columns.keep)  # an empty fragment has columns too
        rows = chain([(nothing, 0)], rows)
        for piece, table in cut(fragment, rows, self.limits):
            if piece.index not in done:
                yield piece, table

    def _parquet_rows(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        where = self.storage.url(fragment.file.name)
        keep = self.columns.keep
        position = fragment.start
        file_rows = sum(group.rows for group in fragment.file.row_groups)
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
        raise InputError(f"{where}: broken Parquet ({str(error).splitlines()[0]})") from error
