"""Re-ranking: the rows that one kind of vectors found, by their token vectors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kosbert_ray.outputs.nearest import Nearest
from kosbert_ray.outputs.scoring import MaxSimScorer
from kosbert_ray.shards.vectors import read_blocks
from kosbert_ray.storage import Storage


def reranked(storage: Storage, names: Sequence[str], scorer: MaxSimScorer, found: Nearest, threads: int = 1) -> Nearest:
    """Returns the same rows with the scores of their token vectors. Row groups without any of the rows are not read.

    Args:
        storage: the output directory.
        names: its shards.
        scorer: compares rows with the queries.
        found: rows of each query.
        threads: shards to read at once.

    Raises:
        StorageError: a shard cannot be read.
    """
    scores = np.zeros(found.score.shape, np.float32)

    def read(shard: int) -> None:
        queries, places = np.nonzero(found.shard == shard)
        rows = found.row[queries, places]
        for vectors, numbers in read_blocks(storage, names[shard], scorer.format, np.unique(rows)):
            here = np.flatnonzero(np.isin(rows, numbers))
            if not len(here):
                continue
            place = np.searchsorted(numbers, rows[here])
            scores[queries[here], places[here]] = scorer.pairs(queries[here], vectors, place)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, np.unique(found.shard).tolist()))
    return Nearest(scores, found.shard, found.row)
