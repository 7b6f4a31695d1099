"""The rows of an output nearest to a query, read shard by shard: a look at what was made, not a search engine."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.encoder.source import PLACEHOLDER, PLACEHOLDER_NOTICE
from kosbert_ray.errors import UsageError
from kosbert_ray.job.config import JobConfig
from kosbert_ray.job.resolve import encoder_options, job_of_output, model_source, spec_options
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.storage import Storage


@dataclass(frozen=True)
class Hit:
    """A row near the query: cosine, the shard it is in, and its kept columns."""

    score: float
    shard: str
    row: dict[str, Any]


def search(config: JobConfig, query: str, top: int, say: Callable[[str], None]) -> list[Hit]:
    """Encodes ``query`` with the output's own model and finds the ``top`` nearest rows by cosine.

    Args:
        config: ``output.path`` says where; ``storage``, ``encoder`` and ``model.allow_pickle`` apply.
        query: any text.
        top: how many rows.
        say: takes a line for the user.

    Raises:
        InputError: there is no output of ours.
        ModelError: its model cannot be loaded.
    """
    from kosbert_ray.encoder.model import Encoder

    if top < 1:
        raise UsageError("--top: ask for at least one row")
    output = Storage(config.output.path, config.storage.options())
    job, _ = job_of_output(config, Ledger(output))
    if job.model.name == PLACEHOLDER:
        say(PLACEHOLDER_NOTICE)
    encoder = Encoder.load(model_source(job), encoder_options(job), spec_options(job))
    column = job.output.column
    vector = encoder.encode([query])[0]
    vector /= np.linalg.norm(vector)
    best: list[tuple[float, int, Hit]] = []  # a heap; the counter settles ties
    count = 0
    for entry in output.list():
        if not entry.name.endswith(".parquet"):
            continue
        with output.open(entry.name) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                scores = _cosines(batch.column(column), vector)
                for index in np.argsort(-scores, kind="stable")[:top]:
                    count += 1
                    hit = Hit(float(scores[index]), entry.name, _kept(batch, column, int(index)))
                    heapq.heappush(best, (hit.score, -count, hit))
                    if len(best) > top:
                        heapq.heappop(best)
    return [hit for _, _, hit in sorted(best, reverse=True, key=lambda item: item[:2])]


def _cosines(vectors: pa.Array, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    matrix = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, len(vector))
    lengths = np.linalg.norm(matrix, axis=1)
    scores: npt.NDArray[np.float32] = (matrix @ vector) / np.where(lengths == 0, 1, lengths)
    return scores


def _kept(batch: pa.RecordBatch, column: str, index: int) -> dict[str, Any]:
    return {name: batch.column(name)[index].as_py() for name in batch.schema.names if name != column}
