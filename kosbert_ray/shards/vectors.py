"""Reads shards: vectors as float32 blocks, and single rows of the kept columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.shard import reading
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural

BLOCK_ROWS = 16_384
BLOCK_VALUES = 2**23  # 32 MiB in float32; a thread has one block

Block = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@contextlib.contextmanager
def open_shard(storage: Storage, name: str) -> Iterator[pq.ParquetFile]:
    """Opens a shard for the length of a ``with`` block.

    Raises:
        StorageError: the shard is missing or damaged, also if that shows only while the block reads.
    """
    with reading(storage, name), storage.open(name) as file:
        yield pq.ParquetFile(file, page_checksum_verification=True)


def read_vectors(storage: Storage, name: str, vector_format: EmbeddingFormat) -> Iterator[Block]:
    """Yields a shard's vectors block by block; rows without a vector are skipped.

    Args:
        storage: the output directory.
        name: the shard.
        vector_format: how its vectors are stored.

    Yields:
        Vectors, float32 ``[m, dimension]``, and their row numbers in the shard, int64 ``[m]``.

    Raises:
        StorageError: the shard cannot be read, or does not hold such vectors.
    """
    yield from read_blocks(storage, name, vector_format)


def read_blocks(
    storage: Storage, name: str, vector_format: VectorFormat, wanted: npt.NDArray[np.int64] | None = None
) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Yields a shard's vectors of any kind; see :func:`read_vectors`. Blocks hold about as many numbers.

    Args:
        storage: the output directory.
        name: the shard.
        vector_format: how its vectors are stored.
        wanted: row numbers, ascending; row groups without any of them are not read. None to read all.
    """
    start = 0
    with open_shard(storage, name) as shard:
        size = _block_rows(shard, vector_format)
        for group in range(shard.num_row_groups):
            end = start + shard.metadata.row_group(group).num_rows
            if wanted is None or np.diff(np.searchsorted(wanted, (start, end))):
                for batch in shard.iter_batches(size, row_groups=[group], columns=[vector_format.column]):
                    vectors, rows = vector_format.matrix(batch.column(vector_format.column))
                    yield vectors, rows + start
                    start += len(batch)
            start = end


def _block_rows(shard: pq.ParquetFile, vector_format: VectorFormat) -> int:
    """Rows of a block: fewer where a row has many token vectors."""
    metadata, columns = shard.metadata, _columns(shard, vector_format)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    values = sum(int(group.column(column).num_values) for group in groups for column in columns)
    return max(1, min(BLOCK_ROWS, BLOCK_VALUES * int(metadata.num_rows) // max(1, values)))


def stored_bytes(storage: Storage, name: str, vector_format: VectorFormat) -> int:
    """Returns the bytes that a shard's vectors of one column take in the file, from its footer.

    Raises:
        StorageError: the shard cannot be read.
    """
    with open_shard(storage, name) as shard:
        groups = [shard.metadata.row_group(index) for index in range(shard.num_row_groups)]
        chunks = [group.column(column) for group in groups for column in _columns(shard, vector_format)]
        return sum(int(chunk.total_compressed_size) for chunk in chunks)


def _columns(shard: pq.ParquetFile, vector_format: VectorFormat) -> list[int]:
    """Returns the numbers of the Parquet columns that hold a column of vectors."""
    metadata, paths = shard.metadata, vector_format.leaves()
    return [number for number in range(metadata.num_columns) if metadata.schema.column(number).path in paths]


def read_rows(storage: Storage, name: str, rows: Sequence[int] | npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Reads single rows of a shard, in the order given. Only the row groups that hold them are read.

    Args:
        storage: the output directory.
        name: the shard.
        rows: row numbers in the shard.
        columns: the columns to read.

    Raises:
        StorageError: the shard cannot be read, or lacks a row or a column.
    """
    wanted, places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    with open_shard(storage, name) as shard:
        if lacking := {*columns} - {*shard.schema_arrow.names}:
            raise KeyError(f"no column {min(lacking)}")
        parts = []
        start = 0
        for group in range(shard.num_row_groups):
            count = shard.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= start) & (wanted < start + count)]
            if len(inside):
                parts.append(shard.read_row_group(group, columns=list(columns)).take(pa.array(inside - start)))
            start += count
        if len(wanted) and wanted[-1] >= start:
            raise ValueError(f"no row {wanted[-1]}: it has {plural(start, 'row')}")
        found = pa.concat_tables(parts) if parts else shard.schema_arrow.empty_table().select(list(columns))
    return found.take(pa.array(places))
