"""Reading a shard back: its vectors as numbers, block by block, and single rows of its kept columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.storage import Storage

BLOCK_ROWS = 16_384  # 48 MiB of 768 float32 numbers


def read_vectors(
    storage: Storage, name: str, format: EmbeddingFormat
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """A shard's vectors in blocks: float32 ``[m, dimension]``, and which rows of the shard these are: those that have one.

    Args:
        storage: the output directory.
        name: the shard.
        format: how its vectors are stored.

    Raises:
        StorageError: it cannot be read, or holds something else.
    """
    start = 0
    try:
        with storage.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK_ROWS, columns=[format.column]):
                vectors, rows = format.matrix(batch.column(format.column))
                yield vectors, rows + start
                start += len(batch)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise StorageError(f"{storage.url(name)}: cannot be read ({first_line(error)}); see kosbert-ray verify") from error


def rows_of(storage: Storage, name: str, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The values of some rows of a shard, in the order asked for; only the row groups they are in are read."""
    if not columns:
        return [{} for _ in rows]
    found: dict[int, dict[str, Any]] = {}
    wanted = np.unique(rows)
    with storage.open(name) as file:
        shard = pq.ParquetFile(file)
        start = 0
        for group in range(shard.num_row_groups):
            count = shard.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= start) & (wanted < start + count)]
            if len(inside):
                table = shard.read_row_group(group, columns=list(columns)).take(pa.array(inside - start))
                found |= dict(zip(inside.tolist(), table.to_pylist(), strict=True))
            start += count
    return [found[row] for row in rows]
