"""One slice's output file: its schema, its bytes, and how it comes to stand under its final name.

The bytes depend on the slice and the vectors only (no time, no host, no run), so the same slice encoded twice on the same
hardware is the same file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.format import EmbeddingFormat
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
    ]
)


def checksum(*vectors: pa.Array) -> str:
    """XXH128 of the values of list arrays, one after another, nulls left out: what a shard's footer says of its vectors.

    It is there to find damage, not forgery: a cryptographic hash took a fifth of the time of writing a shard.
    """
    digest = xxhash.xxh3_128()
    for array in vectors:
        values = np.ascontiguousarray(array.flatten().to_numpy(zero_copy_only=False))
        digest.update(values.view(np.uint8).data)
    return digest.hexdigest()


def write_shard(
    storage: Storage,
    name: str,
    keep: dict[str, pa.Array],
    vectors: Sequence[pa.Array],
    formats: Sequence[EmbeddingFormat],
    metadata: dict[str, Any],
) -> int:
    """Commits one slice: the file appears under ``name`` whole, or not at all.

    Args:
        storage: the output directory.
        name: the shard's final name.
        keep: columns carried through, ``n`` values each.
        vectors: ``n`` vectors in each format, as :meth:`EmbeddingFormat.array` gives them.
        formats: how they are stored.
        metadata: what the footer says of the slice, under the key ``kosbert_ray``; plain values only.

    Returns:
        Bytes written.

    Raises:
        StorageError: the store refuses.
    """
    content = shard_bytes(keep, vectors, formats, metadata)
    storage.write_atomic(name, content)
    return int(content.size)


def shard_bytes(
    keep: dict[str, pa.Array], vectors: Sequence[pa.Array], formats: Sequence[EmbeddingFormat], metadata: dict[str, Any]
) -> pa.Buffer:
    """The Parquet file of a slice; the arguments are those of :func:`write_shard`."""
    fields = [pa.field(column, array.type) for column, array in keep.items()] + [format.field() for format in formats]
    said = {
        METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
        VECTORS_KEY: described(formats),
    }
    return parquet_bytes(pa.table([*keep.values(), *vectors], schema=pa.schema(fields, metadata=said)), formats)


def described(formats: Sequence[EmbeddingFormat]) -> bytes:
    """What a footer says of how vectors are stored: of each column all that makes numbers of its values again."""
    return json.dumps({format.column: format.described() for format in formats}).encode()


def parquet_bytes(table: pa.Table, formats: Sequence[EmbeddingFormat]) -> pa.Buffer:
    """The Parquet file of ``table``, which may lack the columns of vectors.

    Floats are byte-stream-split: their exponents compress, their mantissas do not. Bytes, which Parquet has only as 32-bit
    numbers, go through a dictionary, whose indices are as wide as they are.
    """
    values = {f"{format.column}.list.element": format.dtype in ("float32", "float16") for format in formats}
    others = [name for name in table.column_names if name not in {format.column for format in formats}]
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
    """Writes the rows of a slice that were not embedded (``REJECTED_SCHEMA``), before the shard that commits it."""
    storage.write_atomic(f"{REJECTED_FOLDER}/{shard_name}", to_parquet(rejected.cast(REJECTED_SCHEMA)))


def read_rejected(storage: Storage, shard_name: str) -> pa.Table:
    """The rows of a slice that were not embedded (``REJECTED_SCHEMA``); raises StorageError if they are gone or broken."""
    name = f"{REJECTED_FOLDER}/{shard_name}"
    with reading(storage, name):
        return pq.read_table(pa.BufferReader(storage.read(name)), schema=REJECTED_SCHEMA)


@contextlib.contextmanager
def reading(storage: Storage, name: str) -> Iterator[None]:
    """Raises StorageError, with the file's address, for whatever goes wrong while the block reads a file of an output."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StorageError(f"{storage.url(name)}: cannot be read ({first_line(error)}); see kosbert-ray verify") from error


def read_metadata(storage: Storage, name: str) -> dict[str, Any] | None:
    """What a shard's footer says of its slice; None if it is not a shard of ours or cannot be read."""
    try:
        with storage.open(name) as file:
            return footer_of(pq.read_metadata(file))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def read_schema(storage: Storage, name: str) -> pa.Schema | None:
    """Returns a shard's columns as Parquet gives them back, or None if it cannot be read or is not a kosbert-ray shard."""
    try:
        with storage.open(name) as file:
            metadata = pq.read_metadata(file)
            footer_of(metadata)
            return metadata.schema.to_arrow_schema().remove_metadata()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def footer_of(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What a Parquet footer says of the slice; raises KeyError or ValueError where it says nothing of ours."""
    return dict(json.loads((metadata.metadata or {})[METADATA_KEY]))
