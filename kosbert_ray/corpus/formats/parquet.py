"""Parquet: split at row groups, inspected by its footer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile, RowGroup
from kosbert_ray.corpus.formats.base import Format, Look, Wanted
from kosbert_ray.corpus.formats.columnar import (
    DECODED_ROWS,
    Finder,
    check_schema,
    kept_types,
    pieces,
    recognised,
    regrouped,
    row_table,
)
from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.corpus.names import locate
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.types import EXACT_INTEGERS
from kosbert_ray.errors import InputError, StorageError, first_line
from kosbert_ray.storage import Storage, storage_errors

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

PARQUET = ds.ParquetFileFormat()
MAGIC = b"PAR1"
FOOTER_BYTES = 64 * 2**10  # most footers are smaller
INT96_UNIT = "us"  # for Spark's legacy timestamps; as nanoseconds, those after 2262 would overflow
PREFETCH_BYTES = 64 * 2**20
WHOLE_BYTES = 2**20
BUFFER_BYTES = 2**20


class Parquet(Format):
    """Reads Parquet files."""

    tail_bytes: ClassVar[int] = FOOTER_BYTES

    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:
        """See :meth:`Format.look`."""
        metadata = _footer(storage, file, tail)
        schema = _schema(metadata)
        if not metadata.num_rows:
            return Look(file, tuple(schema.names), kept_types(schema, wanted), empty=True)
        types = check_schema(schema, wanted)
        paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        columns = [paths.index(".".join(locate(name, schema) or ())) for name in wanted.text.columns]
        groups = tuple(
            RowGroup(
                metadata.row_group(number).num_rows,
                sum(metadata.row_group(number).column(column).total_uncompressed_size for column in columns),
            )
            for number in range(metadata.num_row_groups)
        )
        for name, seen in types.items():
            if pa.types.is_integer(seen.type) and seen.type.bit_width == 64:
                path = ".".join(locate(name, schema) or ())
                types[name] = replace(seen, wide=_is_wide(metadata, paths.index(path)))
        return Look(replace(file, row_groups=groups), tuple(schema.names), types)

    def fragments(self, file: InputFile, limits: Limits, newlines_in_values: bool) -> Iterator[Fragment]:  # noqa: ARG002
        """A row group larger than a slice is a fragment of its own; small neighbours share one."""
        index = start = first = rows = size = 0
        groups = file.row_groups
        # Fragments are sent to readers, which need the number of rows but not the list of row groups.
        file = replace(file, row_groups=(RowGroup(file.rows, sum(group.bytes for group in groups)),))
        for number, group in enumerate(groups):
            if rows and (rows + group.rows > limits.max_rows or size + group.bytes > limits.max_bytes):
                yield Fragment(file, index, start, start + rows, (first, number))
                index, start, first, rows, size = index + 1, start + rows, number, 0, 0
            rows, size = rows + group.rows, size + group.bytes
        if rows:
            yield Fragment(file, index, start, start + rows, (first, len(groups)))

    def rows(
        self,
        storage: Storage,
        fragment: Fragment,
        columns: Columns,
        options: LineOptions,  # noqa: ARG002
    ) -> Iterator[tuple[pa.Table, int]]:
        """See :meth:`Format.rows`."""
        where = storage.url(fragment.file.name)
        position = fragment.start
        file_rows = fragment.file.rows
        assert fragment.row_groups is not None
        groups = list(range(*fragment.row_groups))
        whole = fragment.file.size <= WHOLE_BYTES
        with storage_errors(where), _opened(storage, fragment.file.name, whole) as handle, _broken_parquet(where):
            metadata = pq.read_metadata(handle)
            find = Finder.of(columns, _schema(metadata))
            # Prefetching holds everything requested at once. Of large row groups, pages are read as they are needed.
            small = whole or _stored_bytes(metadata, groups, find.paths) <= PREFETCH_BYTES
            file = pq.ParquetFile(
                handle,
                metadata=metadata,
                pre_buffer=small and not whole,
                buffer_size=0 if small else BUFFER_BYTES,
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
            batches = file.iter_batches(DECODED_ROWS, row_groups=groups, columns=find.paths)
            for piece in pieces(regrouped(batches), find):
                table = row_table(piece, position, find, columns)
                position += len(piece)
                yield table, fragment.file.size * len(piece) // file_rows


def _opened(storage: Storage, name: str, whole: bool) -> IO[bytes] | pa.NativeFile:
    """A file to read: one that is small is read in one request."""
    return pa.BufferReader(storage.read(name)) if whole else storage.open(name)


def _schema(metadata: pq.FileMetaData) -> pa.Schema:
    """The columns of a file, as they are read."""
    columns = (metadata.schema.column(number) for number in range(metadata.num_columns))
    if any(column.physical_type == "INT96" for column in columns):
        nothing = pa.BufferReader(b"")
        return pq.ParquetFile(nothing, metadata=metadata, coerce_int96_timestamp_unit=INT96_UNIT).schema_arrow
    return metadata.schema.to_arrow_schema()


def _footer(storage: Storage, file: InputFile, tail: bytes | None) -> pq.FileMetaData:
    """A file's footer: from its last bytes, if they have been fetched and are enough, else from the file."""
    with contextlib.suppress(pa.ArrowException, OSError):  # read again below, where each error gets its own message
        if tail is not None:
            return _metadata(pa.BufferReader(tail))
        if storage.arrow is not None:
            return _metadata(storage.path(file.name), storage.arrow, file.size)
    try:
        with storage.open(file.name) as handle:
            return _metadata(handle)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(_problem(storage, file) or f"broken Parquet ({first_line(error)})") from error


def _metadata(
    file: str | pa.NativeFile | IO[bytes], files: FileSystem | None = None, size: int | None = None
) -> pq.FileMetaData:
    """Reads a footer in less than half of the time that ``pq.read_metadata`` takes, and mostly outside the GIL."""
    return PARQUET.make_fragment(file, files, file_size=size).metadata


def _problem(storage: Storage, file: InputFile) -> str | None:
    """The reason why a file has no readable footer, if it is known."""
    with contextlib.suppress(StorageError):
        if storage.read_head(file.name, len(MAGIC)) == MAGIC:
            return "broken Parquet (it has no footer: cut short, or still being written); copy it again"
    return recognised(storage, file, (MAGIC,))


def _is_wide(metadata: pq.FileMetaData, column: int) -> bool:
    """True if a column may have integers that a double cannot represent, according to the file's statistics."""
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        if not -EXACT_INTEGERS <= statistics.min <= statistics.max <= EXACT_INTEGERS:
            return True
    return False


def _stored_bytes(metadata: pq.FileMetaData, groups: Iterable[int], paths: Iterable[str]) -> int:
    """Stored bytes of some columns in some row groups."""
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


@contextlib.contextmanager
def _broken_parquet(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: broken Parquet ({first_line(error)})") from error
