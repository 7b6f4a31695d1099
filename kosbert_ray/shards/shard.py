"""One slice's output file: its schema, its bytes, and how it comes to stand under its final name.

The bytes depend on the slice and the vectors only (no time, no host, no run), so the same slice encoded twice on the same
hardware is the same file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import UsageError
from kosbert_ray.storage import Storage

REJECTED_FOLDER = "_kosbert/rejected"
METADATA_KEY = b"kosbert_ray"
ROW_GROUP_BYTES = 64 * 2**20
ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
INT32_MAX = 2**31 - 1

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("byte_offset", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("text", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class EmbeddingFormat:
    """How vectors are stored: column name, length, number type, and the Arrow list type that holds them.

    ``nullable``: rows that could not be embedded are there too, with a null.
    """

    dimension: int
    column: str = "embedding"
    dtype: Literal["float32", "float16"] = "float32"
    list_type: Literal["list", "fixed_size_list"] = "list"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    nullable: bool = False

    def field(self) -> pa.Field:
        """The Arrow field of the vectors."""
        value = ARROW_TYPES[self.dtype]
        fixed = self.list_type == "fixed_size_list"
        return pa.field(self.column, pa.list_(value, self.dimension) if fixed else pa.list_(value), self.nullable)

    def array(self, vectors: npt.NDArray[np.float32], valid: pa.Array | None = None) -> pa.Array:
        """float32 ``[n, dimension]`` as an Arrow array; float32 is not copied.

        Args:
            vectors: of the rows that have one.
            valid: bool ``[rows]``, which rows these are; the others get a null. None: all.
        """
        if len(vectors) * self.dimension > INT32_MAX:
            raise UsageError(f"slice.max_rows: {len(vectors)} vectors of {self.dimension} are too many for one file")
        has = np.ones(len(vectors), bool) if valid is None else valid.to_numpy(zero_copy_only=False)
        mask = None if has.all() else pa.array(~has)
        if self.list_type == "fixed_size_list":
            if mask is not None:  # a null takes its place among the values
                all_rows = np.zeros((len(has), self.dimension), vectors.dtype)
                all_rows[has] = vectors
                vectors = all_rows
            return pa.FixedSizeListArray.from_arrays(self._values(vectors), self.dimension, mask=mask)
        offsets = np.concatenate(([0], np.cumsum(has))).astype(np.int32) * self.dimension
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self._values(vectors), mask=mask)

    def _values(self, vectors: npt.NDArray[np.float32]) -> pa.Array:
        return pa.array(np.ascontiguousarray(vectors, self.dtype).reshape(-1))


def checksum(*vectors: pa.Array) -> str:
    """sha256 of the values of list arrays, one after another, nulls left out: what a shard's footer says of its vectors."""
    digest = hashlib.sha256()
    for array in vectors:
        values = np.ascontiguousarray(array.flatten().to_numpy(zero_copy_only=False))
        digest.update(values.view(np.uint8).data)
    return digest.hexdigest()


def write_shard(
    storage: Storage,
    name: str,
    keep: dict[str, pa.Array],
    vectors: pa.Array,
    format: EmbeddingFormat,
    metadata: dict[str, Any],
) -> int:
    """Commits one slice: the file appears under ``name`` whole, or not at all.

    Args:
        storage: the output directory.
        name: the shard's final name.
        keep: columns carried through, ``n`` values each.
        vectors: ``n`` vectors, as :meth:`EmbeddingFormat.array` gives them.
        format: how they are stored.
        metadata: what the footer says of the slice, under the key ``kosbert_ray``; plain values only.

    Returns:
        Bytes written.

    Raises:
        StorageError: the store refuses.
    """
    table = pa.table(
        [*keep.values(), vectors],
        schema=pa.schema(
            [*(pa.field(column, array.type) for column, array in keep.items()), format.field()],
            metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)},
        ),
    )
    content = parquet_bytes(table, format)
    storage.write_atomic(name, content)
    return int(content.size)


def parquet_bytes(table: pa.Table, format: EmbeddingFormat) -> pa.Buffer:
    """The Parquet file of ``table``: vectors byte-stream-split (their exponents compress, their mantissas do not)."""
    sink = pa.BufferOutputStream()
    values = f"{format.column}.list.element"
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    pq.write_table(
        table,
        sink,
        compression=format.compression,
        use_dictionary=[name for name in table.column_names if name != format.column],
        column_encoding={values: "BYTE_STREAM_SPLIT"},
        write_statistics=[name for name in table.column_names if name != format.column],
        write_page_checksum=True,
        row_group_size=max(1024, ROW_GROUP_BYTES // row_bytes),
    )
    return sink.getvalue()


def write_rejected(storage: Storage, shard_name: str, rejected: pa.Table) -> None:
    """Writes the rows of a slice that were not embedded (``REJECTED_SCHEMA``), before the shard that commits it."""
    sink = pa.BufferOutputStream()
    pq.write_table(rejected.cast(REJECTED_SCHEMA), sink, compression="zstd")
    storage.write_atomic(f"{REJECTED_FOLDER}/{shard_name}", sink.getvalue())


def read_metadata(storage: Storage, name: str) -> dict[str, Any] | None:
    """What a shard's footer says of its slice; None if it is not a shard of ours or cannot be read."""
    try:
        with storage.open(name) as file:
            return footer_of(pq.read_metadata(file))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def footer_of(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What a Parquet footer says of the slice; raises KeyError or ValueError where it says nothing of ours."""
    return dict(json.loads((metadata.metadata or {})[METADATA_KEY]))
