"""Reads the rows of one fragment, slice by slice, in a read task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns, path_keys
from kosbert_ray.corpus.cut import cut
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.table import format_of
from kosbert_ray.corpus.fragments import Fragment, Limits, Slice
from kosbert_ray.corpus.names import composed
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT, rows_from_values
from kosbert_ray.errors import InputChanged, InputError, StorageError
from kosbert_ray.storage import Storage


@dataclass(frozen=True)
class FragmentReader:
    """Reads fragments of one corpus. It is small and picklable: it is sent to read tasks."""

    storage: Storage
    columns: Columns
    options: LineOptions
    limits: Limits

    def slices(self, fragment: Fragment, done: Collection[int] = ()) -> Iterator[tuple[Slice, pa.Table]]:
        """Yields the slices of a fragment in order, with their row tables (see ``row_table``).

        Memory: one slice and one block of the file, whatever the file's size.

        Args:
            fragment: what to read.
            done: indices of slices to skip.

        Raises:
            InputChanged: the file has changed since it was listed. The slices yielded before are of the listed file.
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
            self._require_unchanged(fragment.file)  # the error may come from a replaced file
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
        rows = format_of(fragment.file).rows(self.storage, fragment, self.columns, self.options)
        tables = self._with_partitions(fragment, chain([(self._no_rows, 0)], rows))
        yield from cut(fragment, tables, fragment.limits or self.limits)

    @cached_property
    def _no_rows(self) -> pa.Table:
        """Gives a fragment without rows its columns."""
        return rows_from_values((), self.columns.source, self.columns.stored)

    def _with_partitions(self, fragment: Fragment, rows: Iterable[tuple[pa.Table, int]]) -> Iterable[tuple[pa.Table, int]]:
        """Adds the columns that come from the file's path."""
        if not self.columns.partitions:
            yield from rows
            return
        keys = path_keys(self.storage.url(fragment.file.name))
        for table, read in rows:
            for name in self.columns.partitions:
                value = pa.scalar(keys.get(composed(name)), pa.string())
                table = table.append_column(name, pa.repeat(value, table.num_rows))
            yield table.select([TEXT, POSITION, REASON, *self.columns.keep.names]), read
