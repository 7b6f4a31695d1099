"""Shards: the output file of one slice, and the file of its rejected rows.

A shard's bytes depend only on the slice and its vectors, not on the time, the host or the run. Encoding the same slice
twice on the same hardware gives the same file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.field_ids import with_field_ids
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

REJECTED_FOLDER = "_kosbert/rejected"
METADATA_KEY = b"kosbert_ray"
VECTORS_KEY = b"kosbert_ray.vectors"
ROW_GROUP_BYTES = 64 * 2**20

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("byte_offset", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("slice_row", pa.int64()),
    ]
)


def checksum(*columns: pa.Array | pa.ChunkedArray) -> str:
    """Returns the XXH128 of the numbers in columns of vectors, without nulls, however the columns are divided into chunks.

    Where vectors have different lengths, these are hashed, too. It detects damage, not forgery. A cryptographic hash would
    take a fifth of the time of writing a shard.
    """
    digest = xxhash.xxh3_128()
    for column in columns:
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        for values in _hashed(chunks, inside=False):
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def _hashed(chunks: Sequence[pa.Array], inside: bool) -> Iterator[Any]:
    """Yields the numbers of chunks of a nested type.

    Args:
        chunks: the chunks.
        inside: whether they are inside of another type, so that the lengths of lists are not those of the format.
    """
    if not chunks:
        return
    kind = chunks[0].type
    if pa.types.is_struct(kind):
        there = [chunk.drop_null() if chunk.null_count else chunk for chunk in chunks]
        for number in range(kind.num_fields):
            yield from _hashed([chunk.field(number) for chunk in there], inside=True)
        return
    nested = pa.types.is_nested(kind.value_type)
    if (inside or nested) and not pa.types.is_fixed_size_list(kind):
        for chunk in chunks:
            yield pc.list_value_length(chunk.drop_null()).to_numpy(zero_copy_only=False)
    flat = [chunk.flatten() for chunk in chunks]
    if nested:
        yield from _hashed(flat, inside=True)
        return
    for values in flat:
        yield values.to_numpy(zero_copy_only=False)


def write_shard(
    storage: Storage,
    name: str,
    keep: dict[str, pa.Array],
    vectors: Sequence[pa.Array],
    formats: Sequence[VectorFormat],
    metadata: dict[str, Any],
    numbered: bool = True,
) -> int:
    """Commits one slice by writing its shard atomically.

    Args:
        storage: the output directory.
        name: the shard's final name.
        keep: columns carried over from the input, ``n`` values each.
        vectors: ``n`` vectors in each format, as returned by :meth:`VectorFormat.array`.
        formats: the formats of ``vectors``.
        metadata: facts about the slice for the footer, under the key ``kosbert_ray``; JSON values only.
        numbered: whether the output's columns have field ids.

    Returns:
        Bytes written.

    Raises:
        StorageError: the shard cannot be written.
    """
    content = shard_bytes(keep, vectors, formats, metadata, numbered)
    storage.write_atomic(name, content)
    return int(content.size)


def shard_bytes(
    keep: dict[str, pa.Array],
    vectors: Sequence[pa.Array],
    formats: Sequence[VectorFormat],
    metadata: dict[str, Any],
    numbered: bool = True,
) -> pa.Buffer:
    """Serializes a shard; the arguments are those of :func:`write_shard`."""
    fields = [pa.field(column, array.type) for column, array in keep.items()] + [item.field() for item in formats]
    footer = {
        METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
        VECTORS_KEY: described(formats),
    }
    schema = pa.schema(fields, metadata=footer)
    schema = with_field_ids(schema) if numbered else schema
    return parquet_bytes(pa.table([*keep.values(), *vectors], schema=schema), formats)


def described(formats: Sequence[VectorFormat]) -> bytes:
    """Returns the footer's description of the vector columns: everything needed to decode their values."""
    return json.dumps({item.column: item.described() for item in formats}).encode()


def parquet_bytes(table: pa.Table, formats: Sequence[VectorFormat]) -> pa.Buffer:
    """Serializes ``table`` with the Parquet settings of a shard. Its vector columns may be missing.

    Floats use BYTE_STREAM_SPLIT, because their exponents compress and their mantissas do not. Bytes are 32-bit integers in
    Parquet, so they use a dictionary, whose indices take 8 bits.
    """
    values = {path: split for item in formats for path, split in item.leaves().items()}
    others = [name for name in table.column_names if name not in {item.column for item in formats}]
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    return to_parquet(
        table,
        compression=formats[0].compression,
        use_dictionary=others + [name for name, floats in values.items() if not floats],
        column_encoding={name: "BYTE_STREAM_SPLIT" for name, floats in values.items() if floats} or None,
        write_statistics=others,
        write_page_checksum=True,
        row_group_size=max(1024, ROW_GROUP_BYTES // row_bytes),
    )


def write_rejected(storage: Storage, shard_name: str, rejected: pa.Table) -> None:
    """Writes the rejected rows of a slice (``REJECTED_SCHEMA``). Call it before the shard commits the slice."""
    storage.write_atomic(f"{REJECTED_FOLDER}/{shard_name}", to_parquet(rejected.cast(REJECTED_SCHEMA)))


def read_rejected(storage: Storage, shard_name: str) -> pa.Table:
    """Reads the rejected rows of a slice (``REJECTED_SCHEMA``); raises StorageError if they are missing or broken."""
    name = f"{REJECTED_FOLDER}/{shard_name}"
    with reading(storage, name):
        return pq.read_table(pa.BufferReader(storage.read(name)), schema=REJECTED_SCHEMA)


@contextlib.contextmanager
def reading(storage: Storage, name: str) -> Iterator[None]:
    """Turns any error from reading the file ``name`` of an output into a StorageError with its address."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StorageError(f"{storage.url(name)}: cannot be read ({first_line(error)}); see kosbert-ray verify") from error


def read_metadata(storage: Storage, name: str) -> dict[str, Any] | None:
    """Returns the facts about a slice from its shard's footer; None if it cannot be read or is not a kosbert-ray shard."""
    try:
        with storage.open(name) as file:
            return footer_of(pq.read_metadata(file))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def read_schema(storage: Storage, name: str) -> pa.Schema | None:
    """Returns the Arrow schema of a shard; None if it cannot be read or is not a kosbert-ray shard."""
    try:
        with storage.open(name) as file:
            metadata = pq.read_metadata(file)
            footer_of(metadata)
            return metadata.schema.to_arrow_schema().remove_metadata()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def footer_of(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Returns the facts about a slice from a Parquet footer; raises KeyError or ValueError if it is not a shard's."""
    return dict(json.loads((metadata.metadata or {})[METADATA_KEY]))
