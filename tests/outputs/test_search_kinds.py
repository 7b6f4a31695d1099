"""Search by sparse and token vectors, and by several kinds, is what the reference computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kind_outputs import ENCODER, QUERIES, embed
from multi_vector_models import save_colbert
from sentence_transformers import util
from sparse_models import save_inference_free

from kosbert_ray import Output
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.outputs import fusion
from kosbert_ray.outputs.scoring import MaxSimScorer
from kosbert_ray.shards import vectors
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.vectors.token_vectors import TokenVectors

MINI = "bundled:kosbert-mini"


def ranked(output: Output, scores: np.ndarray, by: str, **options: Any) -> None:
    """The hits are the rows with the largest scores, float ``[queries, rows]`` in the order of the output."""
    rows = [row["id"] for row in output.to_arrow(["id"]).to_pylist()]
    hits = output.search(QUERIES, top_k=5, by=by, **options)
    for number, query in enumerate(QUERIES):
        found = [hit for hit in hits if hit.query == query]
        best = np.argsort(-scores[number], kind="stable")[:5]
        assert [hit.columns["id"] for hit in found] == [rows[place] for place in best]
        assert np.allclose([hit.score for hit in found], scores[number][best], rtol=1e-4)


def test_search_by_token_vectors_is_maxsim(tokens: Output, colbert: Path) -> None:
    stored = [np.array(row, np.float32) for row in tokens.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    queries = Encoder.load(str(colbert), EncoderOptions(**ENCODER)).encode_multi_vector(QUERIES, task="query")
    assert {len(one) for one in queries} == {16}  # queries are expanded
    right = util.maxsim([one.astype(np.float32) for one in queries], stored)
    ranked(tokens, np.asarray(right), "multi_vector")


def test_search_by_sparse_vectors_is_the_dot_product(sparse: Output, splade: Path) -> None:
    stored = Encoder.load(str(splade), EncoderOptions(**ENCODER)).encode_sparse(sparse.to_arrow(["text"])["text"])
    queries = Encoder.load(str(splade), EncoderOptions(**ENCODER)).encode_sparse(QUERIES)
    ranked(sparse, (queries @ stored.T).toarray(), "sparse")


def test_hybrid_search_adds_standardized_scores(both: Output) -> None:
    table, encoder = both.to_arrow(), Encoder.load(MINI, EncoderOptions(**ENCODER))
    dense = util.cos_sim(encoder.encode(QUERIES), np.array(table["embedding"].to_pylist(), np.float32)).numpy()
    stored = [np.array(row, np.float32) for row in table["multi_vector"].to_pylist()]
    queries = [one.astype(np.float32) for one in encoder.encode_multi_vector(QUERIES)]
    late = np.asarray(util.maxsim(queries, stored))
    ranked(both, dense, "dense")
    ranked(both, late, "multi_vector")
    total = sum((each - each.mean(1, keepdims=True)) / each.std(1, keepdims=True) for each in (dense, late))
    ranked(both, total, "hybrid")
    ranks = [np.argsort(np.argsort(-each, 1, kind="stable"), 1, kind="stable") + 1 for each in (dense, late)]
    ranked(both, sum(1 / (60 + each) for each in ranks), "hybrid", fusion="reciprocal_rank")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "by": ({"by": "dence"}, "by: 'dence' is not known; choose one of dense, sparse, multi_vector, hybrid"),
    "fusion": ({"by": "hybrid", "fusion": "rrf"}, "fusion: 'rrf' is not known; choose one of standardized"),
    "fusion of one kind": ({"fusion": "reciprocal_rank"}, "--fusion: needs --by hybrid"),
    "similarity": ({"similarity": "euclid"}, "similarity: 'euclid' is not known"),
    "rerank": ({"by": "multi_vector", "rerank": -1}, "--rerank: must be at least the 10 rows of --top-k"),
    "few to rerank": ({"by": "multi_vector", "rerank": 3}, "--rerank: must be at least the 10 rows of --top-k"),
    "rerank of dense": ({"by": "dense", "rerank": 30}, "--rerank: needs --by multi_vector"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_of_a_search_is_refused(case: str, both: Output) -> None:
    options, message = WRONG[case]
    with pytest.raises(UsageError, match=re.escape(message)):
        both.search("비", **options)


def test_equal_scores_share_a_rank() -> None:
    """Most rows have no word in common with a query, and a sparse score of 0."""
    ranks = fusion._reciprocal_ranks(np.array([[0, 3, 0, 1, 0]], np.float32))
    assert ranks.tolist() == [pytest.approx([1 / 63, 1 / 61, 1 / 63, 1 / 62, 1 / 63])]


def test_a_row_without_a_value_in_common_is_no_sparse_hit(cli, three: Output, splade: Path, tmp_path: Path) -> None:
    stored = three.to_arrow(["sparse"])["sparse"].to_pylist()
    queries = three.encoder().encode_sparse(QUERIES, task="query").toarray()
    hits = three.search(QUERIES, top_k=len(stored), by="sparse")
    for query, weights in zip(QUERIES, queries, strict=True):
        scores = np.array([weights[row["indices"]] @ np.array(row["values"]) for row in stored])
        found = [hit.score for hit in hits if hit.query == query]
        assert 0 < len(found) < len(stored)
        assert found == pytest.approx(np.sort(scores[scores > 0])[::-1], rel=1e-4)
    empty = embed(tmp_path / "empty", splade, output={"sparse_threshold": 1e6})
    done = cli("search", empty.storage.root, QUERIES[0])
    assert done.stdout == ""
    assert "no row has a value in common" in done.stderr
    cli("search", empty.storage.root, QUERIES[0], "--format", "parquet", "-o", tmp_path / "none.parquet")
    table = pq.read_table(tmp_path / "none.parquet")
    assert (table.num_rows, table.column_names) == (0, ["id", "text", "query", "rank", "score", "shard", "row"])


def test_a_row_without_token_vectors_is_no_hit(cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("비가 온다\n. , .\n눈이 온다\n", "utf-8")
    folder = save_colbert(tmp_path / "model", "bert", (".", ",", "[CLS]", "[SEP]"))
    cli(
        "embed", tmp_path / "in", tmp_path / "out", "--model", folder, "--set", "executor=local", "--set", "model.prompt=''"
    )
    counts = [len(row) for row in Output.open(tmp_path / "out").to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    assert [count > 0 for count in counts] == [True, False, True]
    for query in ("비가 온다", "눈"):
        assert {hit.row for hit in Output.open(tmp_path / "out").search(query)} == {0, 2}


def test_queries_need_no_inference(tmp_path: Path) -> None:
    model = save_inference_free(tmp_path)
    output = embed(tmp_path / "out", model)
    encoder = Encoder.load(str(model), EncoderOptions(**ENCODER))
    stored = encoder.encode_sparse(output.to_arrow(["text"])["text"], task="document")
    ranked(output, (encoder.encode_sparse(QUERIES, task="query") @ stored.T).toarray(), "sparse")


def test_reranking_looks_at_the_nearest_only(both: Output) -> None:
    every = both.search(QUERIES[0], top_k=3, by="multi_vector")
    again = both.search(QUERIES[0], top_k=3, by="multi_vector", rerank=10**6)
    assert [(hit.rank, hit.columns) for hit in again] == [(hit.rank, hit.columns) for hit in every]
    assert [hit.score for hit in again] == pytest.approx([hit.score for hit in every])
    few = both.search(QUERIES[0], top_k=3, by="multi_vector", rerank=3)
    dense = both.search(QUERIES[0], top_k=3, by="dense")
    assert {hit.columns["id"] for hit in few} == {hit.columns["id"] for hit in dense}
    scores = {hit.columns["id"]: hit.score for hit in both.search(QUERIES[0], top_k=520, by="multi_vector")}
    assert [hit.score for hit in few] == pytest.approx([scores[hit.columns["id"]] for hit in few])


def test_blocks_without_a_candidate_are_passed_over(both: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    every = both.search(QUERIES[0], top_k=3, by="multi_vector", rerank=5)
    monkeypatch.setattr(vectors, "BLOCK_VALUES", 30_000)  # some ten rows
    again = both.search(QUERIES[0], top_k=3, by="multi_vector", rerank=5)
    assert [(hit.shard, hit.row) for hit in again] == [(hit.shard, hit.row) for hit in every]
    assert [hit.score for hit in again] == pytest.approx([hit.score for hit in every])


def test_scorers_take_rows_without_vectors() -> None:
    rows = TokenVectors.of_lengths(np.eye(3, dtype=np.float16), np.array([0, 2, 0, 1, 0]))
    scorer = MaxSimScorer(
        MultiVectorFormat(3), [np.array([[1, 0, 0], [0, 0, 2]], np.float32), np.empty((0, 3), np.float32)]
    )
    assert scorer.pairs(np.array([0, 0, 1, 1, 0]), rows, np.arange(5)).tolist() == [0, 1, 0, 0, 0]
    assert scorer.pairs(np.array([1, 0, 0]), rows, np.array([3, 3, 1])).tolist() == [0, 2, 1]
