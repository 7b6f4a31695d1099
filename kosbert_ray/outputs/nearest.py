"""Exact nearest-neighbour search, shard by shard, in memory for one block of rows per thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.outputs.scoring import Scorer
from kosbert_ray.storage import Storage


@dataclass(frozen=True)
class Nearest:
    """The rows nearest to ``q`` queries, best first.

    Attributes:
        score: similarities, float32 ``[q, k]``; fewer than ``k`` columns if there are fewer rows.
        shard: for each, the index of its shard among the names searched, int64 ``[q, k]``.
        row: for each, its row number in the shard, int64 ``[q, k]``.
    """

    score: npt.NDArray[np.float32]
    shard: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def best(self, k: int) -> Nearest:
        """Returns the ``k`` best; ties go to the earlier shard, then to the earlier row."""
        order = np.lexsort((self.row, self.shard, -self.score), axis=1)[:, :k]
        score, shard, row = (np.take_along_axis(values, order, 1) for values in (self.score, self.shard, self.row))
        return Nearest(np.asarray(score, np.float32), np.asarray(shard, np.int64), np.asarray(row, np.int64))


def nearest(storage: Storage, names: Sequence[str], scorer: Scorer, k: int, threads: int = 1) -> Nearest:
    """Compares every row with every query, block by block, and keeps the best. Rows without a vector are skipped.

    Args:
        storage: the output directory.
        names: its shards.
        scorer: compares rows with the queries.
        k: rows per query.
        threads: shards to read at once.

    Raises:
        StorageError: a shard cannot be read.
    """
    found = none_for(scorer.queries)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_of_shard, storage, name, index, scorer, k) for index, name in enumerate(names)]
        for job in jobs:
            found = _joined(found, job.result()).best(k)
    return found


def _of_shard(storage: Storage, name: str, index: int, scorer: Scorer, k: int) -> Nearest:
    found = none_for(scorer.queries)
    for scores, rows in scorer.scores(storage, name):
        found = keep_best(found, scores, rows, index, k)
    return found


def keep_best(found: Nearest, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], index: int, k: int) -> Nearest:
    """Returns the ``k`` best of what was found before and of further rows.

    Args:
        found: what was found before.
        scores: of the rows, float32 ``[q, m]``.
        rows: their numbers in the shard, int64 ``[m]``.
        index: of the shard.
        k: rows per query.
    """
    return _joined(found, _best_of(scores, rows, index, k)).best(k)


def _best_of(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], index: int, k: int) -> Nearest:
    if scores.shape[1] > k:
        # Keep all that are as good as the k-th, so that ties are broken by shard and row.
        worst = np.partition(scores, -k, axis=1)[:, -k]
        some = np.flatnonzero((scores >= worst[:, None]).any(0))
        scores, rows = scores[:, some], rows[some]
    return Nearest(scores, np.full(scores.shape, index), np.broadcast_to(rows, scores.shape))


def _joined(one: Nearest, other: Nearest) -> Nearest:
    pairs: list[tuple[Any, Any]] = [(one.score, other.score), (one.shard, other.shard), (one.row, other.row)]
    return Nearest(*(np.concatenate(pair, 1) for pair in pairs))


def none_for(queries: int) -> Nearest:
    """Returns no rows for each of some queries."""
    empty = np.empty((queries, 0), np.int64)
    return Nearest(np.empty((queries, 0), np.float32), empty, empty)
