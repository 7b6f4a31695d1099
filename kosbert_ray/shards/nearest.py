"""The rows of an output nearest to query vectors: exact, a shard at a time, memory for one block of rows a thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.storage import Storage

Similarity = Literal["cosine", "dot"]
BLOCK_ROWS = 16_384  # 48 MiB of 768 float32 numbers


@dataclass(frozen=True)
class Nearest:
    """The best rows of ``q`` queries, best first; each array is ``[q, k]``, less than ``k`` where there are fewer rows.

    ``shard`` is an index into the names that were searched, ``row`` a row of that shard.
    """

    score: npt.NDArray[np.float32]
    shard: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def best(self, k: int) -> Nearest:
        """The ``k`` best; of equal ones the earlier shard's, then the earlier row."""
        order = np.lexsort((self.row, self.shard, -self.score), axis=1)[:, :k]
        score, shard, row = (np.take_along_axis(values, order, 1) for values in (self.score, self.shard, self.row))
        return Nearest(np.asarray(score, np.float32), np.asarray(shard, np.int64), np.asarray(row, np.int64))


def nearest(
    storage: Storage,
    names: Sequence[str],
    column: str,
    queries: npt.NDArray[np.float32],
    k: int,
    similarity: Similarity = "cosine",
    threads: int = 1,
) -> Nearest:
    """Compares every vector with every query, by products of blocks, and keeps the best.

    Rows without a vector are passed over; the cosine with a vector of zeros is 0.

    Args:
        storage: the output directory.
        names: its shards.
        column: of the vectors.
        queries: float32 ``[q, d]``.
        k: how many rows a query.
        similarity: cosine, or the plain dot product.
        threads: shards that are read at the same time.

    Raises:
        StorageError: a shard cannot be read.
    """
    if similarity == "cosine":
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        queries = np.asarray(queries / np.where(lengths == 0, 1, lengths), np.float32)
    found = _none(len(queries))
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(_of_shard, storage, name, index, column, queries, k, similarity) for index, name in enumerate(names)
        ]
        for job in jobs:
            found = _joined(found, job.result()).best(k)
    return found


def _of_shard(
    storage: Storage,
    name: str,
    index: int,
    column: str,
    queries: npt.NDArray[np.float32],
    k: int,
    similarity: Similarity,
) -> Nearest:
    found = _none(len(queries))
    start = 0
    try:
        with storage.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK_ROWS, columns=[column]):
                vectors, rows = matrix(batch.column(0), queries.shape[1])
                scores = queries @ vectors.T
                if similarity == "cosine":
                    lengths = np.linalg.norm(vectors, axis=1)
                    scores /= np.where(lengths == 0, 1, lengths)
                found = _joined(found, _best_of(scores, rows + start, index, k)).best(k)
                start += len(batch)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise StorageError(
            f"{storage.url(name)}: cannot be searched ({first_line(error)}); see kosbert-ray verify"
        ) from error
    return found


def matrix(vectors: pa.Array, dimension: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A list column as float32 ``[m, dimension]``, and which rows these are: those that are not null.

    Raises:
        ValueError: they are not vectors of that length.
    """
    rows = np.flatnonzero(pc.is_valid(vectors).to_numpy(zero_copy_only=False))
    values = vectors.drop_null().flatten().to_numpy(zero_copy_only=False)
    if len(values) != len(rows) * dimension:
        raise ValueError(f"its vectors do not all have {dimension} numbers")
    return values.astype(np.float32, copy=False).reshape(-1, dimension), rows


def _best_of(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], index: int, k: int) -> Nearest:
    if scores.shape[1] > k:
        # All that are as good as the k-th, so that equal ones are told apart by where they are.
        worst = np.partition(scores, -k, axis=1)[:, -k]
        some = np.flatnonzero((scores >= worst[:, None]).any(0))
        scores, rows = scores[:, some], rows[some]
    return Nearest(scores, np.full(scores.shape, index), np.broadcast_to(rows, scores.shape))


def _joined(one: Nearest, other: Nearest) -> Nearest:
    pairs: list[tuple[Any, Any]] = [(one.score, other.score), (one.shard, other.shard), (one.row, other.row)]
    return Nearest(*(np.concatenate(pair, 1) for pair in pairs))


def _none(queries: int) -> Nearest:
    empty = np.empty((queries, 0), np.int64)
    return Nearest(np.empty((queries, 0), np.float32), empty, empty)


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
