"""Nearest-neighbour search over an output, with queries encoded by the output's own model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.nearest import Nearest, Similarity, nearest

if TYPE_CHECKING:
    import numpy.typing as npt

    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.index.searcher import IndexSearcher
    from kosbert_ray.outputs.output import Output

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """A row near a query.

    Attributes:
        query: the query.
        rank: 1 for the nearest row.
        score: similarity of the query and the row.
        shard: the shard that holds the row.
        row: its row number in the shard.
        columns: its kept columns.
    """

    query: str
    rank: int
    score: float
    shard: str
    row: int
    columns: dict[str, Any]


class Searcher:
    """Searches one output for query after query; the model is loaded once.

    Queries get the model's own prompt for queries, whatever prompt the documents got: like sentence-transformers'
    ``encode_query``, which does not know either how documents were embedded. Prompts that do not seem to fit are reported.

    Args:
        output: the output.
        prompt: text put before each query instead.
        prompt_name: one of the model's prompts, by name, instead.
    """

    def __init__(self, output: Output, prompt: str | None = None, prompt_name: str | None = None) -> None:
        self._output, self._prompt, self._prompt_name = output, prompt, prompt_name

    @cached_property
    def _shards(self) -> list[str]:
        shards = self._output.shards()
        if not shards:
            raise InputError(f"{self._output.storage.url()}: no shards in it yet")
        self._output.warn_if_partial("searched")
        return shards

    @cached_property
    def _encoder(self) -> Encoder:
        """The output's model for queries; its prompt is reported."""
        from kosbert_ray.encoder.encoder import Encoder

        output = self._output
        spec = output.model(self._prompt, self._prompt_name).for_queries()
        if spec.prompt:
            log.info(f"prompt of the queries: {spec.prompts.described(spec.prompt)}")
        if warning := spec.prompts.query_warning(output.job.model.name, output.job.model.prompt or ""):
            log.warning(warning)
        return Encoder(spec, output.job.encoder)

    @cached_property
    def _index(self) -> IndexSearcher | None:
        """The output's index; None if there is none of its current rows."""
        from kosbert_ray.outputs.index.files import RECORD_FILE

        if not self._output.storage.exists(RECORD_FILE):
            return None
        from kosbert_ray.outputs.index.searcher import IndexSearcher

        return IndexSearcher.open(self._output)

    @cached_property
    def _indexed(self) -> npt.NDArray[np.int64]:
        """The place in ``_shards`` of each shard in the index; -1 for those that are gone, which are not found."""
        assert self._index
        place_of = {name: place for place, name in enumerate(self._shards)}
        return np.array([place_of.get(name, -1) for name in self._index.shards.names], np.int64)

    def _found(self, vectors: npt.NDArray[np.float32], top_k: int, similarity: Similarity, exact: bool) -> Nearest:
        """The nearest rows, with places in ``_shards``."""
        output, shards = self._output, self._shards
        cosine = similarity == "cosine" or output.record.normalized
        if not exact and cosine and (index := self._index):
            found = index.search(vectors, top_k)
            return Nearest(found.score, self._indexed[found.shard], found.row)
        threads = reader_threads(output.storage)
        return nearest(output.storage, shards, output.dense, vectors, top_k, similarity, threads)

    def search(self, queries: Sequence[str], top_k: int, similarity: Similarity, exact: bool = False) -> list[Hit]:
        """Finds the rows nearest to each query, by the output's index if there is one.

        Args:
            queries: the texts to look for.
            top_k: rows per query.
            similarity: "cosine" or "dot".
            exact: compare queries with every row, although there is an index.

        Returns:
            The hits of each query, best first, query by query.

        Raises:
            InputError: there are no shards yet.
            ModelError: the model cannot be loaded, or has changed since.
        """
        if top_k < 1:
            raise UsageError("--top-k: ask for at least one row")
        output, shards = self._output, self._shards
        vectors = self._encoder.encode(list(queries))
        found = self._found(vectors, top_k, similarity, exact)
        columns: dict[tuple[int, int], dict[str, Any]] = {}
        if output.columns:
            for shard in sorted({*found.shard.ravel().tolist()}):
                rows = sorted({*found.row[found.shard == shard].tolist()})
                kept = output.rows(shards[shard], rows).to_pylist()
                columns |= {(shard, row): values for row, values in zip(rows, kept, strict=True)}
        return [
            Hit(query, rank, score, shards[shard], row, columns.get((shard, row), {}))
            for query, *ranked in zip(queries, found.score.tolist(), found.shard.tolist(), found.row.tolist(), strict=True)
            for rank, (score, shard, row) in enumerate(zip(*ranked, strict=True), 1)
        ]
