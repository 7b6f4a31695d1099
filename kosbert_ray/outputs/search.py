"""Nearest-neighbour search over an output, with queries encoded by the output's own model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.fusion import Fusion, hybrid
from kosbert_ray.outputs.nearest import Nearest, nearest
from kosbert_ray.outputs.scoring import DenseScorer, MaxSimScorer, Scorer, Similarity, SparseScorer
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named

if TYPE_CHECKING:
    import numpy.typing as npt

    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.index.searcher import IndexSearcher
    from kosbert_ray.outputs.output import Output

By = Literal["dense", "sparse", "multi_vector", "hybrid"]
HYBRID: By = "hybrid"

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


def require_one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Raises UsageError if an argument has none of some values."""
    if value not in known:
        names = ", ".join(str(item) for item in known if item is not None)
        raise UsageError(f"{name}: {value!r} is not known; choose one of {names}")


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
        return Encoder(spec, output.job.encoder, kinds=output.kinds[:1])

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

    def _scorer(self, kind: Kind, queries: list[str], similarity: Similarity) -> Scorer:
        """Compares queries with the output's vectors of one kind."""
        output, encoder = self._output, self._encoder
        if kind == DENSE:
            return DenseScorer(output.dense, encoder.encode(queries), similarity)
        if kind == SPARSE:
            return SparseScorer(output.kind_format(kind), encoder.encode_sparse(queries, task="query"))
        return MaxSimScorer(output.kind_format(kind), encoder.encode_multi_vector(queries, task="query"))

    def _by_index(self, queries: list[str], top_k: int) -> Nearest | None:
        """The nearest rows by the output's index; None if there is none."""
        if not (index := self._index):
            return None
        found = index.search(self._encoder.encode(queries), top_k)
        return Nearest(found.score, self._indexed[found.shard], found.row)

    def _found(
        self, queries: list[str], by: By, top_k: int, similarity: Similarity, exact: bool, rerank: int, fusion: Fusion
    ) -> Nearest:
        """The nearest rows, with places in ``_shards``."""
        output, shards, threads = self._output, self._shards, reader_threads(self._output.storage)
        if by == HYBRID:
            scorers = [self._scorer(kind, queries, similarity) for kind in output.kinds]
            return hybrid(output.storage, shards, scorers, top_k, fusion, threads)
        if rerank:
            first = DENSE if DENSE in output.kinds else SPARSE
            candidates = self._found(queries, first, rerank, similarity, exact, 0, fusion)
            return self._reranked(queries, candidates).best(top_k)
        cosine = similarity == "cosine" or output.record.normalized
        if by == DENSE and not exact and cosine and (found := self._by_index(queries, top_k)):
            return found
        return nearest(output.storage, shards, self._scorer(cast(Kind, by), queries, similarity), top_k, threads)

    def _reranked(self, queries: list[str], found: Nearest) -> Nearest:
        """The same rows with the scores of their token vectors."""
        output, scorer = self._output, self._scorer(MULTI_VECTOR, queries, "dot")
        assert isinstance(scorer, MaxSimScorer)
        item, scores = output.kind_format(MULTI_VECTOR), np.zeros(found.score.shape, np.float32)
        for shard in np.unique(found.shard):
            query, place = np.nonzero(found.shard == shard)
            column = output.rows(self._shards[shard], found.row[query, place], [item.column])[item.column]
            vectors, _ = item.matrix(column.combine_chunks())
            scores[query, place] = scorer.pairs(vectors, query)
        return Nearest(scores, found.shard, found.row)

    def _by(self, by: By | None, rerank: int) -> By:
        """Returns the kind to search by; raises UsageError if the output does not have it."""
        kinds = self._output.kinds
        by = by or kinds[0]
        if by == HYBRID and len(kinds) < 2:
            raise UsageError(
                f"--by hybrid: {self._output.storage.url()} has {named(kinds)} vectors only; embed with "
                "--set output.vectors=dense,sparse or another pair of kinds that the model has"
            )
        if by != HYBRID and by not in kinds:
            raise UsageError(f"--by {by}: {self._output.storage.url()} has {named(kinds)} vectors only")
        if rerank and (by != MULTI_VECTOR or len(kinds) < 2):
            raise UsageError("--rerank: needs --by multi_vector, and an output with dense or sparse vectors as well")
        return by

    def search(
        self,
        queries: Sequence[str],
        top_k: int,
        similarity: Similarity,
        exact: bool = False,
        by: By | None = None,
        rerank: int = 0,
        fusion: Fusion | None = None,
    ) -> list[Hit]:
        """Finds the rows nearest to each query, by the output's index if there is one.

        Args:
            queries: the texts to look for.
            top_k: rows per query.
            similarity: "cosine" or "dot", of dense vectors.
            exact: compare queries with every row, although there is an index.
            by: the kind of vectors to compare, or "hybrid" for all that the output has; by default its first kind.
            rerank: compare token vectors of this many rows only, the nearest by dense or else by sparse vectors; 0 for all.
            fusion: how a hybrid search combines scores; by default "standardized".

        Returns:
            The hits of each query, best first, query by query.

        Raises:
            InputError: there are no shards yet.
            ModelError: the model cannot be loaded, or has changed since.
            UsageError: the output does not have these vectors.
        """
        require_one_of("similarity", similarity, get_args(Similarity))
        require_one_of("by", by, (None, *get_args(By)))
        require_one_of("fusion", fusion, (None, *get_args(Fusion)))
        if not isinstance(top_k, int) or top_k < 1:
            raise UsageError("--top-k: ask for at least one row")
        if not isinstance(rerank, int) or rerank < 0 or 0 < rerank < top_k:
            raise UsageError(f"--rerank: must be at least the {plural(top_k, 'row')} of --top-k, or 0 to compare all rows")
        if fusion and by != HYBRID:
            raise UsageError("--fusion: needs --by hybrid")
        if not queries:
            return []
        output, shards = self._output, self._shards
        found = self._found(list(queries), self._by(by, rerank), top_k, similarity, exact, rerank, fusion or "standardized")
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
