"""Hybrid search: one ranking by several kinds of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from kosbert_ray.outputs.nearest import Nearest, keep_best, none_for
from kosbert_ray.outputs.scoring import Int64, Scorer, Scores
from kosbert_ray.storage import Storage

Fusion = Literal["standardized", "reciprocal_rank"]

RANK_CONSTANT = 60  # Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion"


def hybrid(
    storage: Storage, names: Sequence[str], scorers: Sequence[Scorer], k: int, fusion: Fusion, threads: int = 1
) -> Nearest:
    """Ranks all rows by several scores of equal weight. Takes 4 bytes of memory for a row, a query and a score.

    Args:
        storage: the output directory.
        names: its shards.
        scorers: one for each score.
        k: rows per query.
        fusion: "standardized" adds scores that have mean 0 and deviation 1 over all rows; "reciprocal_rank" adds
            ``1 / (60 + rank)``.
        threads: shards to read at once.

    Raises:
        StorageError: a shard cannot be read.
    """

    def read(name: str) -> tuple[list[Scores], Int64]:
        blocks = [list(scorer.scores(storage, name)) for scorer in scorers]
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in blocks[0])])
        nothing = np.empty((scorers[0].queries, 0), np.float32)
        return [np.concatenate([nothing, *(scores for scores, _ in each)], axis=1) for each in blocks], rows

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(read, names))
    sides = [np.concatenate([scores[side] for scores, _ in found], axis=1) for side in range(len(scorers))]
    combine = _standardized if fusion == "standardized" else _reciprocal_ranks
    total = np.sum([combine(side) for side in sides], axis=0)
    best = none_for(scorers[0].queries)
    end = 0
    for index, (_, rows) in enumerate(found):
        best = keep_best(best, total[:, end : end + len(rows)], rows, index, k)
        end += len(rows)
    return best


def _standardized(scores: Scores) -> Scores:
    if not scores.size:
        return scores
    deviation = scores.std(axis=1, keepdims=True)
    standardized: Scores = (scores - scores.mean(axis=1, keepdims=True)) / np.where(deviation == 0, 1, deviation)
    return standardized


def _reciprocal_ranks(scores: Scores) -> Scores:
    """Rows with equal scores share the best of their ranks."""
    from scipy.stats import rankdata

    ranks = rankdata(-scores, method="min", axis=1)
    fused: Scores = (1 / (RANK_CONSTANT + ranks)).astype(np.float32, copy=False)
    return fused
