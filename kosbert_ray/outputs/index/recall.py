"""Chooses how many lists a query looks into, by recall@10 against exact search."""

from __future__ import annotations

import numpy as np

from kosbert_ray.outputs.index.files import Int64
from kosbert_ray.outputs.index.library import faiss
from kosbert_ray.outputs.index.searcher import IndexSearcher, Vectors
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import read_vectors
from kosbert_ray.vectors.arithmetic import unit

QUERIES = 1000  # rows of the output, which are compared with every row
TOP = 10
KNOWN = 100  # nearest rows whose exact scores are kept, so that rows as near as the tenth count, too
TIE = 1e-5
SEED = 1  # another sample than that of the training


def probes_for(searcher: IndexSearcher, output: Output, vector_format: EmbeddingFormat, recall: float) -> tuple[int, float]:
    """The fewest lists of 1, 2, 3, 4, 6, 8, 12 and so on with which the recall is reached; all lists if it is not.

    Returns:
        The number of lists and the recall@10 measured with it.

    Raises:
        StorageError: a shard cannot be read.
    """
    queries = np.ascontiguousarray(unit(output.sample(QUERIES, SEED, columns=[], max_shards=None).vectors))
    best = _exact(searcher, output, vector_format, queries)
    probes = 1
    while True:
        reached = _recall(*best, searcher.ids(queries, TOP, probes)[1])
        if reached >= recall or probes >= searcher.record.lists:
            return probes, reached
        more = probes * 3 // 2 if probes.bit_count() == 1 else probes * 4 // 3
        probes = min(max(probes + 1, more), searcher.record.lists)


def _exact(
    searcher: IndexSearcher, output: Output, vector_format: EmbeddingFormat, queries: Vectors
) -> tuple[Vectors, Int64]:
    """Scores and ids of the nearest rows, ``[q, KNOWN]``, from every row."""
    heap = faiss.ResultHeap(len(queries), KNOWN, keep_max=True)
    first_of = dict(zip(searcher.shards.names, searcher.shards.firsts.tolist(), strict=True))
    for shard in output.shards():
        for vectors, rows in read_vectors(output.storage, shard, vector_format):
            directions = np.ascontiguousarray(unit(vectors))
            scores, places = faiss.knn(queries, directions, min(KNOWN, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, rows[places] + first_of[shard])
    heap.finalize()
    return heap.D, heap.I


def _recall(scores: Vectors, ids: Int64, found: Int64) -> float:
    """The part of the best rows that was found. A row that is as near as the last of the best is one of them."""
    top = min(TOP, int((ids[0] >= 0).sum()))
    hits = 0
    for query in range(len(ids)):
        known = dict(zip(ids[query].tolist(), scores[query].tolist(), strict=True))
        least = scores[query, top - 1] - TIE
        hits += min(top, sum(known.get(row, -2.0) >= least for row in found[query].tolist()))
    return float(hits / (top * len(ids)))
