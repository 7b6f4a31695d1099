"""Nearest-neighbour search over an output, with queries encoded by the output's own model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from kosbert_ray.errors import InputError, UsageError, require_one_of
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.fusion import Fusion, hybrid
from kosbert_ray.outputs.nearest import Nearest, nearest
from kosbert_ray.outputs.rerank import reranked
from kosbert_ray.outputs.scoring import DenseScorer, MaxSimScorer, Scorer, Similarity, SparseScorer
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named

if TYPE_CHECKING:
    import numpy.typing as npt

    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.model.spec import ModelSpec
    from kosbert_ray.outputs.index.searcher import IndexSearcher
    from kosbert_ray.outputs.output import Output

By = Literal["dense", "sparse", "multi_vector", "hybrid"]
HYBRID: By = "hybrid"
NO_HIT = -np.inf  # score of a row that is no hit
SHOWN_CHARS = 60  # of a query in a warning

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
    def _spec(self) -> ModelSpec:
        """The output's model for queries; its prompt is reported."""
        output = self._output
        spec = output.model(self._prompt, self._prompt_name).for_queries()
        if spec.prompt:
            log.info(f"prompt of the queries: {spec.prompts.described(spec.prompt)}")
        if warning := spec.prompts.query_warning(output.job.model.name, output.job.model.prompt or ""):
            log.warning(warning)
        return spec

    @cached_property
    def _encoder(self) -> Encoder:
        """The encoder of queries. Like that of the documents, it computes all kinds of the output with one engine."""
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder(self._spec, self._output.job.encoder, kinds=self._output.kinds)

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

    def _scorer(self, kind: Kind, queries: list[str], similarity: Similarity, empty: float = NO_HIT) -> Scorer:
        """Compares queries with the output's vectors of one kind; ``empty`` is the score of a row without token vectors."""
        output, encoder = self._output, self._encoder
        if kind == DENSE:
            return DenseScorer(output.dense, encoder.encode(queries), similarity)
        if kind == SPARSE:
            return SparseScorer(output.kind_format(kind), encoder.encode_sparse(queries, task="query"))
        return self._maxsim(queries, empty)

    def _maxsim(self, queries: list[str], empty: float) -> MaxSimScorer:
        vectors = self._encoder.encode_multi_vector(queries, task="query")
        return MaxSimScorer(self._output.kind_format(MULTI_VECTOR), vectors, empty)

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
        output, shards, storage = self._output, self._shards, self._output.storage
        threads = reader_threads(storage)
        if by == HYBRID:
            scorers = [self._scorer(kind, queries, similarity, 0) for kind in output.kinds]
            return hybrid(storage, shards, scorers, top_k, fusion, threads)
        if rerank:
            candidates = self._nearest(queries, DENSE if DENSE in output.kinds else SPARSE, rerank, similarity, exact)
            return reranked(storage, shards, self._maxsim(queries, NO_HIT), candidates, threads).best(top_k)
        return self._nearest(queries, cast(Kind, by), top_k, similarity, exact)

    def _nearest(self, queries: list[str], kind: Kind, top_k: int, similarity: Similarity, exact: bool) -> Nearest:
        """The nearest rows by one kind of vectors."""
        cosine = similarity == "cosine" or self._output.record.normalized
        if kind == DENSE and not exact and cosine and (found := self._by_index(queries, top_k)):
            return found
        scorer = self._scorer(kind, queries, similarity)
        return nearest(self._output.storage, self._shards, scorer, top_k, reader_threads(self._output.storage))

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
            The hits of each query, best first, query by query. By sparse vectors, only rows with a value in common with the
            query are hits, and by token vectors only rows that have some, so there may be fewer than ``top_k``.

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
        by = self._by(by, rerank)
        if not isinstance(rerank, int) or rerank < 0 or 0 < rerank < top_k:
            raise UsageError(f"--rerank: must be at least the {plural(top_k, 'row')} of --top-k, or 0 to compare all rows")
        if fusion and by != HYBRID:
            raise UsageError("--fusion: needs --by hybrid")
        if not queries:
            return []
        top_k, rerank = (min(count, max(1, self._output.totals.rows)) for count in (top_k, rerank))
        found = self._found(list(queries), by, top_k, similarity, exact, rerank, fusion or "standardized")
        # A row without a value in common with the query is no hit, as in a search by words.
        hits = found.score > (0 if by == SPARSE else NO_HIT)
        reason = "no row has a value in common with it" if by == SPARSE else "no row has a vector"
        for query in np.flatnonzero(~hits.any(axis=1)).tolist():
            log.warning(f"{queries[query][:SHOWN_CHARS]!r}: {reason}")
        return self._hits(queries, found, hits)

    def _hits(self, queries: Sequence[str], found: Nearest, chosen: npt.NDArray[np.bool_]) -> list[Hit]:
        """The chosen ones of the rows that were found, with their kept columns."""
        output, shards = self._output, self._shards
        columns: dict[tuple[int, int], dict[str, Any]] = {}
        for shard in np.unique(found.shard[chosen]).tolist() if output.columns else ():
            rows = np.unique(found.row[(found.shard == shard) & chosen])
            kept = output.rows(shards[shard], rows).to_pylist()
            columns |= {(shard, row): values for row, values in zip(rows.tolist(), kept, strict=True)}
        hits = []
        for query, place in np.argwhere(chosen).tolist():
            shard, row = int(found.shard[query, place]), int(found.row[query, place])
            values = columns.get((shard, row), {})
            hits.append(Hit(queries[query], place + 1, float(found.score[query, place]), shards[shard], row, values))
        return hits
