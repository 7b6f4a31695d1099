"""Arrow IPC: the streams that Hugging Face's ``save_to_disk`` writes, and files (Feather)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Format, Look, Wanted
from kosbert_ray.corpus.formats.columnar import Finder, check_schema, kept_types, pieces, recognised, row_table
from kosbert_ray.corpus.fragments import Fragment, Limits, whole_file
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import rows_from_values
from kosbert_ray.errors import InputError, StorageError, first_line
from kosbert_ray.storage import Storage, storage_errors

FILE_MAGIC = b"ARROW1"
STREAM_MAGIC = b"\xff\xff\xff\xff"


class Arrow(Format):
    """Reads Arrow IPC streams and files, from their start."""

    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:  # noqa: ARG002
        """See :meth:`Format.look`."""
        with _naming(storage, file), _opened(storage, file) as stream:
            schema = stream.schema
            names = tuple(schema.names)
            try:
                return Look(file, names, check_schema(schema, wanted))
            except InputError:
                if any(len(batch) for batch in stream.batches):
                    raise
                return Look(file, names, kept_types(schema, wanted), empty=True)

    def fragments(self, file: InputFile, limits: Limits, newlines_in_values: bool) -> Iterator[Fragment]:  # noqa: ARG002
        """One per file."""
        return whole_file(file)

    def rows(
        self,
        storage: Storage,
        fragment: Fragment,
        columns: Columns,
        options: LineOptions,  # noqa: ARG002
    ) -> Iterator[tuple[pa.Table, int]]:
        """See :meth:`Format.rows`."""
        position = read = 0
        with _opened(storage, fragment.file) as stream:
            batches = filter(len, stream.batches)
            first = next(batches, None)
            filled = () if first is None else chain([first], batches)
            find = Finder.of(columns, stream.schema) if filled else Finder({})  # without rows, columns do not matter
            for piece in pieces(filled, find):
                fetched = min(stream.handle.tell(), fragment.file.size)
                yield row_table(piece, position, find, columns), max(0, fetched - read)
                position, read = position + len(piece), max(read, fetched)
        yield rows_from_values((), columns.source, columns.stored), fragment.file.size - read


@dataclass(frozen=True)
class _Batches:
    """The content of an open file in order; the position of ``handle`` is how much has been read."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]
    handle: IO[bytes]


@contextlib.contextmanager
def _opened(storage: Storage, file: InputFile) -> Iterator[_Batches]:
    """Opens an Arrow IPC stream or file.

    Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc

    Raises:
        InputError: it is neither, or broken.
        StorageError: it cannot be read.
    """
    where = storage.url(file.name)
    try:
        with storage_errors(where), storage.open(file.name) as handle:
            is_file = handle.read(len(FILE_MAGIC)) == FILE_MAGIC
            handle.seek(0)
            if is_file:
                reader = pa.ipc.open_file(pa.PythonFile(handle, mode="r"))
                yield _Batches(reader.schema, map(reader.get_batch, range(reader.num_record_batches)), handle)
            else:
                stream = pa.ipc.open_stream(pa.PythonFile(handle, mode="r"))
                yield _Batches(stream.schema, stream, handle)
    except StorageError as error:
        if isinstance(error.__cause__, pa.ArrowException):
            raise InputError(f"{where}: broken Arrow ({first_line(error.__cause__)})") from error
        raise
    except pa.ArrowException as error:
        raise InputError(f"{where}: broken Arrow ({first_line(error)})") from error


@contextlib.contextmanager
def _naming(storage: Storage, file: InputFile) -> Iterator[None]:
    """Replaces the error about a file that is not Arrow with one that names what it is, if that is known."""
    try:
        yield
    except InputError as error:
        found = recognised(storage, file, (FILE_MAGIC, STREAM_MAGIC))
        if not found:
            raise
        raise InputError(found) from error
