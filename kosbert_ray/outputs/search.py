"""The rows of an output nearest to some queries, by the output's own model: exact, whatever its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.job import encoder_options, job_of_output, open_output, own_model, reader_threads
from kosbert_ray.outputs.nearest import Similarity, nearest
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.vectors import rows_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Hit:
    """A row near a query: the likeness, where it is, and its kept columns."""

    query: str
    rank: int
    score: float
    shard: str
    row: int
    columns: dict[str, Any]


def search(config: JobConfig, queries: Sequence[str], top_k: int, similarity: Similarity, say: Say) -> list[Hit]:
    """Encodes the queries with the output's own model and finds the nearest rows to each.

    Args:
        config: ``output.path`` says where; ``storage`` and ``encoder`` apply, and, to the queries, ``model.prompt`` and
            ``model.prompt_name``.
        queries: any texts.
        top_k: how many rows a query.
        similarity: "cosine" or "dot".
        say: takes a line for the user.

    Returns:
        The hits of each query, best first, query after query.

    Raises:
        InputError: there is no output of ours, or nothing in it.
        ModelError: its model cannot be loaded, or is no longer the one it was made by.
    """
    from kosbert_ray.encoder.encoder import Encoder

    if top_k < 1:
        raise UsageError("--top-k: ask for at least one row")
    output = open_output(config)
    ledger = Ledger(output)
    job, said = job_of_output(config, ledger)
    asked = {name: value for name in ("prompt", "prompt_name") if (value := getattr(config.model, name)) is not None}
    job = job.model_copy(update={"model": job.model.model_copy(update=asked)})
    receipts = ledger.held()
    names = [receipt.shard for receipt in receipts]
    if not names:
        raise InputError(f"{output.url()}: no shards in it yet")
    for notice in ledger.notices:
        say(f"warning: {notice}")
    if not ledger.success():
        committed = sum(receipt.rows for receipt in receipts)
        say(f"warning: {output.url()} is not complete: only the {committed:,} rows committed so far are searched")
    encoder = Encoder(own_model(job, said, output), encoder_options(job))
    vectors = encoder.encode(list(queries))
    format = EmbeddingFormat.of(said["fingerprint"])
    found = nearest(output, names, format, vectors, top_k, similarity, reader_threads(output))
    columns: dict[tuple[int, int], dict[str, Any]] = {}
    for shard in sorted({*found.shard.ravel().tolist()}):
        rows = sorted({*found.row[found.shard == shard].tolist()})
        kept = rows_of(output, names[shard], rows, job.columns())
        columns |= {(shard, row): values for row, values in zip(rows, kept, strict=True)}
    hits = []
    for query, scores, shards, rows in zip(
        queries, found.score.tolist(), found.shard.tolist(), found.row.tolist(), strict=True
    ):
        for rank, (score, shard, row) in enumerate(zip(scores, shards, rows, strict=True), 1):
            hits.append(Hit(query, rank, score, names[shard], row, columns[shard, row]))
    return hits
