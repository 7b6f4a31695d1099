"""Arrow IPC: the streams that Hugging Face's ``save_to_disk`` writes, and files (Feather)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.errors import InputError, StorageError, first_line
from kosbert_ray.storage import Storage, storage_errors

ARROW_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Batches:
    """What an open file gives, from its start to its end; ``handle`` tells how far that is."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]
    handle: IO[bytes]


@contextlib.contextmanager
def open_arrow(storage: Storage, file: InputFile) -> Iterator[Batches]:
    """The record batches of an Arrow IPC stream or file; ``schema`` is theirs.

    Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc

    Raises:
        InputError: it is neither, or broken.
        StorageError: it cannot be read.
    """
    where = storage.url(file.name)
    try:
        with storage_errors(where), storage.open(file.name) as handle:
            is_file = handle.read(len(ARROW_MAGIC)) == ARROW_MAGIC
            handle.seek(0)
            if is_file:
                reader = pa.ipc.open_file(pa.PythonFile(handle, mode="r"))
                yield Batches(reader.schema, map(reader.get_batch, range(reader.num_record_batches)), handle)
            else:
                stream = pa.ipc.open_stream(pa.PythonFile(handle, mode="r"))
                yield Batches(stream.schema, stream, handle)
    except StorageError as error:
        if isinstance(error.__cause__, pa.ArrowException):
            raise InputError(f"{where}: broken Arrow ({first_line(error.__cause__)})") from error
        raise
    except pa.ArrowException as error:
        raise InputError(f"{where}: broken Arrow ({first_line(error)})") from error
