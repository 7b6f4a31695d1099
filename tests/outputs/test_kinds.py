"""Outputs of sparse and token vectors: what they hold, that they resume, verify and are searched as the reference does."""

from __future__ import annotations

import base64
import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Run, command, everyday, leftovers, shards
from hypothesis import given
from hypothesis import strategies as st
from m3_models import save_m3
from multi_vector_models import DIMENSION, save_colbert
from sentence_transformers import util
from sparse_models import save_autoencoder, save_inference_free
from transformers import AutoTokenizer

import kosbert_ray
from kosbert_ray import Output
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.outputs import fusion
from kosbert_ray.outputs.report.kinds.base import Column
from kosbert_ray.outputs.report.kinds.multi_vector import TokenFigures, TokenMeans
from kosbert_ray.outputs.report.words import KOREAN, Words
from kosbert_ray.outputs.sample import sample_kinds
from kosbert_ray.outputs.scoring import MaxSimScorer
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.shards.shard import checksum
from kosbert_ray.units import data_size
from kosbert_ray.vectors.similarity import COSINES
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

SOURCE = "bundled:everyday"
ENCODER = {"precision": "fp32", "device": "cpu"}
PROFILE = "plan.profiles={gpu: {tokens_per_second: 1000000}}"
QUERIES = ["비가 오는 날에 무엇을 먹을까?", "지하철을 갈아타는 곳"]


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    expansion = {"strategy": "fixed", "length": 16, "attend": False}
    return save_colbert(tmp_path_factory.mktemp("colbert"), "bert", (".", ","), query_expansion=expansion)


def embed(folder: Path, model: Path | str, **options: Any) -> Output:
    options = {"input": {"keep": ["id"]}, "executor": "local", "encoder": ENCODER} | options
    kosbert_ray.embed(SOURCE, folder, model=str(model), **options)
    return Output.open(folder, encoder=ENCODER)


@pytest.fixture(scope="module")
def sparse(splade: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    return embed(tmp_path_factory.mktemp("희소") / "out", splade)


@pytest.fixture(scope="module")
def tokens(colbert: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    return embed(tmp_path_factory.mktemp("토큰") / "out", colbert)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = tmp_path_factory.mktemp("both") / "out"
    return embed(folder, "bundled:kosbert-mini", output={"vectors": ["multi_vector", "dense"]})


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_sparse_output_has_the_model_s_vectors(sparse: Output, splade: Path) -> None:
    assert (sparse.kinds, sparse.columns, sparse.complete) == (("sparse",), ("id", "text"), True)
    table = sparse.to_arrow()
    assert str(table.schema.field("sparse").type) == "struct<indices: list<element: int32>, values: list<element: float>>"
    expected = Encoder.load(str(splade), EncoderOptions(**ENCODER)).encode_sparse(table["text"].to_pylist()).toarray()
    for row, right in zip(table["sparse"].to_pylist(), expected, strict=True):
        assert row["indices"] == np.flatnonzero(right).tolist()
        assert np.allclose(row["values"], right[right > 0], atol=1e-5)
    assert sparse.verify().problems == ()


def test_an_output_of_token_vectors_has_the_model_s_vectors(tokens: Output, colbert: Path) -> None:
    table = tokens.to_arrow()
    assert str(table.schema.field("multi_vector").type) == "list<element: list<element: float>>"
    encoder = Encoder.load(str(colbert), EncoderOptions(**ENCODER))
    expected = encoder.encode_multi_vector(table["text"].to_pylist(), task="document")
    for row, right in zip(table["multi_vector"].to_pylist(), expected, strict=True):
        assert np.allclose(np.array(row, np.float32), right.astype(np.float32), atol=2e-3)
    assert tokens.verify().problems == ()


def test_kinds_of_one_pass_are_those_of_separate_runs(both: Output, tmp_path: Path) -> None:
    assert both.kinds == ("dense", "multi_vector")  # columns have a fixed order
    engine = {"encoder": ENCODER | {"engine": "torch"}}
    for kind, column in (("dense", "embedding"), ("multi_vector", "multi_vector")):
        alone = embed(tmp_path / kind, "bundled:kosbert-mini", output={"vectors": [kind]}, **engine)
        assert alone.to_arrow([column])[column].equals(both.to_arrow([column])[column])


def test_top_k_and_a_threshold_limit_sparse_vectors(splade: Path, sparse: Output, tmp_path: Path) -> None:
    limits = {"sparse_top_k": 5, "sparse_threshold": 0.2, "sparse_dtype": "float16"}
    limited = embed(tmp_path / "out", splade, output=limits)
    rows = limited.to_arrow()["sparse"]
    assert rows.type.field("values").type.value_type == pa.float16()
    for row, whole in zip(rows.to_pylist(), sparse.to_arrow()["sparse"].to_pylist(), strict=True):
        pairs = sorted(zip(whole["values"], whole["indices"], strict=True), key=lambda pair: (-pair[0], pair[1]))
        right = sorted(index for value, index in pairs[:5] if value >= 0.2)
        assert row["indices"] == right
    assert limited.verify().problems == ()


def test_token_pooling_leaves_fewer_vectors(both: Output, tmp_path: Path) -> None:
    pooled = embed(tmp_path / "out", "bundled:kosbert-mini", output={"vectors": ["multi_vector"], "token_pooling": 2.0})
    counts = [[len(row) for row in one.to_arrow(["multi_vector"])["multi_vector"].to_pylist()] for one in (pooled, both)]
    assert all(1 + max(1, (every - 1) // 2) == left for left, every in zip(*counts, strict=True))


def test_rejected_rows_have_a_null_vector_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["가", None, "나 다", " ", "라"]}), tmp_path / "in" / "a.parquet")
    settings = {"output": {"vectors": ["dense", "multi_vector"]}, "on_bad_row": "null_vector", "max_rejected": 5}
    kosbert_ray.embed(tmp_path / "in", tmp_path / "out", model="bundled:kosbert-mini", executor="local", **settings)
    output = Output.open(tmp_path / "out")
    for column in ("embedding", "multi_vector"):
        assert [row is None for row in output.to_arrow([column])[column].to_pylist()] == [False, True, False, True, False]
    assert output.verify().problems == ()
    for by in ("dense", "multi_vector", "hybrid"):
        assert {hit.row for hit in output.search("나 다", by=by)} == {0, 2, 4}


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_an_interrupted_run_of_all_kinds_goes_on(executor: str, both: Output, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "output": {"vectors": ["dense", "multi_vector"]},
        "executor": executor,
        "encoder": ENCODER | {"actors": 1},
    }
    embed(tmp_path / "out", "bundled:kosbert-mini", limit=1, **options)
    output = embed(tmp_path / "out", "bundled:kosbert-mini", **options)
    assert output.complete
    assert output.verify().problems == ()
    for column in both.to_arrow().column_names:
        assert output.to_arrow([column])[column].equals(both.to_arrow([column])[column])


def test_token_vectors_of_a_fixed_size(tokens: Output, colbert: Path, tmp_path: Path) -> None:
    fixed = embed(tmp_path / "out", colbert, output={"list_type": "fixed_size_list", "multi_vector_dtype": "float16"})
    column = fixed.to_arrow(["multi_vector"])["multi_vector"]
    assert str(column.type) == f"list<element: fixed_size_list<element: halffloat>[{DIMENSION}]>"
    stored = tokens.to_arrow(["multi_vector"])["multi_vector"]
    flat = [one.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False) for one in (column, stored)]
    assert np.array_equal(flat[0].astype(np.float32), flat[1])
    assert fixed.verify().problems == ()
    hits = [[(hit.score, hit.columns) for hit in one.search(QUERIES[0], by="multi_vector")] for one in (fixed, tokens)]
    assert hits[0] == hits[1]


def test_slices_of_token_vectors_are_cut_small(both: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kosbert_ray import job

    monkeypatch.setattr(job, "MAX_TOKEN_VECTOR_BYTES", 10**6)
    small = embed(tmp_path / "out", "bundled:kosbert-mini", output={"vectors": ["multi_vector"]})
    assert len(small.shards()) > len(both.shards())
    for shard in small.shards():
        column = pq.read_table(tmp_path / "out" / shard)["multi_vector"]
        assert sum(map(len, column.to_pylist())) * 2 * 256 <= 10**6


def test_damage_is_found(tokens: Output, tmp_path: Path) -> None:
    """Values that moved to a neighbour have the same sum, and another place."""
    shutil.copytree(tokens.storage.root, tmp_path / "out")
    name = tokens.shards()[0]
    table = pq.read_table(tmp_path / "out" / name)
    rows = table["multi_vector"].to_pylist()
    rows[0], rows[1] = rows[0][:-1], [rows[0][-1], *rows[1]]
    place = table.column_names.index("multi_vector")
    moved = table.set_column(place, table.schema.field(place), pa.array(rows, table.schema.field(place).type))
    pq.write_table(moved, tmp_path / "out" / name, write_page_checksum=True)
    assert any("XXH128" in str(problem) for problem in Output.open(tmp_path / "out").verify().problems)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=0, max_size=4), min_size=1, max_size=6), st.integers(1, 3))
def test_checksums_do_not_depend_on_chunks(rows: list[list[int]], size: int) -> None:
    values = np.array([[number, 1] for row in rows for number in row], np.float16).reshape(-1, 2)
    counts = np.array([len(row) for row in rows])
    array = MultiVectorFormat(2).array(TokenVectors.of_lengths(values, counts))
    chunks = pa.chunked_array([array.slice(start, size) for start in range(0, len(array), size)])
    assert checksum(array) == checksum(chunks)
    matrix = np.array([[0.0, *row, *[0.0] * (4 - len(row))] for row in rows], np.float32)
    sparse = SparseFormat(5).array(SparseVectors.of_rows(matrix))
    chunks = pa.chunked_array([sparse.slice(start, size) for start in range(0, len(sparse), size)])
    assert checksum(sparse) == checksum(chunks)
    found, _ = SparseFormat(5).matrix(sparse.slice(1))
    assert (found.to_csr(5).toarray() == np.maximum(matrix[1:], 0)).all()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = save_m3(tmp_path_factory.mktemp("m3"))
    return embed(folder.parent / "out", folder, output={"vectors": ["dense", "sparse", "multi_vector"]})


def test_three_kinds_of_one_pass(three: Output) -> None:
    assert three.kinds == ("dense", "sparse", "multi_vector")
    assert three.record.fingerprint["head_weights"]
    found = three.verify(sample=30)
    assert (found.problems, found.agreement > 0.9999) == ((), True)
    best = {by: three.search(QUERIES[0], by=by, top_k=520) for by in ("dense", "sparse", "multi_vector", "hybrid")}
    scores = {by: {hit.columns["id"]: hit.score for hit in hits} for by, hits in best.items()}
    ids = sorted(scores["dense"])
    sides = [np.array([scores[by].get(id, 0) for id in ids]) for by in three.kinds]
    total = sum((side - side.mean()) / side.std() for side in sides)
    assert np.allclose([scores["hybrid"][id] for id in ids], total, atol=1e-3)


def test_dense_vectors_of_a_model_with_heads_have_the_fingerprint_of_one_without(three: Output, tmp_path: Path) -> None:
    folder = Path(three.job.model.name)
    with_heads = embed(tmp_path / "with", folder)
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        shutil.move(folder / name, tmp_path / name)
    try:
        without = embed(tmp_path / "without", folder)
    finally:
        for name in ("sparse_linear.pt", "colbert_linear.pt"):
            shutil.move(tmp_path / name, folder / name)
    assert with_heads.kinds == ("dense",)
    assert with_heads.record.digest == without.record.digest
    assert shards(tmp_path / "with") == shards(tmp_path / "without")


def test_queries_need_no_inference(tmp_path: Path) -> None:
    model = save_inference_free(tmp_path)
    output = embed(tmp_path / "out", model)
    encoder = Encoder.load(str(model), EncoderOptions(**ENCODER))
    stored = encoder.encode_sparse(output.to_arrow(["text"])["text"], task="document")
    ranked(output, (encoder.encode_sparse(QUERIES, task="query") @ stored.T).toarray(), "sparse")


def test_a_sparse_autoencoder_has_both_kinds(tmp_path: Path) -> None:
    output = embed(
        tmp_path / "out", save_autoencoder(tmp_path, "bert"), output={"vectors": ["sparse", "dense"], "dtype": ["int8"]}
    )
    assert output.kinds == ("dense", "sparse")
    assert output.verify(sample=20).problems == ()
    assert max(len(row["values"]) for row in output.to_arrow(["sparse"])["sparse"].to_pylist()) <= 8


# -- what is refused ---------------------------------------------------------------------------------------------------

MINI = "bundled:kosbert-mini"
REFUSED = {
    "a kind that the model lacks": (
        MINI,
        {"output": {"vectors": ["sparse"]}},
        "has dense and multi-vector vectors, and no",
    ),
    "an option of another kind": (MINI, {"output": {"sparse_top_k": 3}}, "output.sparse_top_k: is for sparse vectors"),
    "a mean of chunks": (
        MINI,
        {"output": {"vectors": ["multi_vector"]}, "long_text": "mean"},
        "long_text: mean is for dense vectors only",
    ),
    "duplicates of the corpus": (
        MINI,
        {"output": {"vectors": ["multi_vector"]}, "dedup": "corpus"},
        "dedup: corpus is for dense vectors only",
    ),
    "a type of dense vectors": ("splade", {"output": {"dtype": ["int8"]}}, "output.dtype: is for dense vectors"),
    "a column twice": (
        MINI,
        {"output": {"vectors": ["dense", "multi_vector"], "column": "multi_vector"}},
        "output.vectors: writes a column 'multi_vector' of its own",
    ),
    "the vectors of a sparse output": (MINI, {"reuse": "sparse"}, "has sparse vectors; reuse an output of dense ones"),
    "a kind twice": (MINI, {"output": {"vectors": ["dense", "dense"]}}, "vectors: an entry is named twice"),
    "an unknown kind": (MINI, {"output": {"vectors": ["colbert"]}}, "output.vectors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    case: str, splade: Path, sparse: Output, tmp_path: Path
) -> None:
    model, options, message = REFUSED[case]
    if "reuse" in options:
        options = {"reuse": sparse.storage.root}
    with pytest.raises(UsageError, match=message):
        embed(tmp_path / "out", splade if model == "splade" else model, **options)
    assert not (tmp_path / "out").exists()


def test_status_names_the_kinds(both: Output, sparse: Output, cli: Run) -> None:
    assert "vectors: dense and multi-vector" in cli("status", both.storage.root).stdout
    assert kosbert_ray.status(sparse.storage.root).kinds == ("sparse",)


def test_a_plan_gives_the_bytes_of_each_kind(both: Output, cli: Run, tmp_path: Path) -> None:
    kinds = ("--set", "output.vectors=dense,multi_vector")
    shown = cli("plan", SOURCE, "--model", MINI, "--keep", "id", *kinds).stdout
    assert "bytes of a row's vectors: embedding" in shown
    assert "/s written by each" in cli("plan", SOURCE, "--model", MINI, *kinds, "--set", PROFILE).stdout
    pooling = ("--set", "output.vectors=multi_vector", "--set", "output.token_pooling=2")
    assert "token pooling takes" in cli("plan", SOURCE, "--model", MINI, *pooling).stdout
    size = re.search(r"shards, ([\d.]+) MB", shown)
    assert size is not None
    assert 1e6 * float(size[1]) == pytest.approx(both.totals.output_bytes, rel=0.15)


def test_other_kinds_are_another_job(both: Output, told: Callable[..., str]) -> None:
    message = told("embed", SOURCE, both.storage.root, "--model", MINI, "--set", "output.vectors=dense", code=1)
    assert "output.vectors is" in message


def test_tools_for_dense_vectors_say_so(tokens: Output, told: Callable[..., str], tmp_path: Path) -> None:
    output = tokens.storage.root
    for arguments in (
        ("cluster", output, "--clusters", "3"),
        ("index", output),
        ("export", output, tmp_path / "npy", "--format", "npy"),
    ):
        assert "multi-vector vectors only" in told(*arguments, code=1), arguments
    for by in ("dense", "hybrid"):
        assert "multi-vector vectors only" in told("search", output, "가", "--by", by, code=2)


# -- diff --------------------------------------------------------------------------------------------------------------


def compared(cli: Callable[..., Any], one: Output, other: Output, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(cli("diff", one.storage.root, other.storage.root, "--json", *arguments).stdout)["agreements"])


def test_an_output_agrees_with_itself_in_every_kind(cli, sparse: Output, tokens: Output, both: Output) -> None:
    for output in (sparse, tokens, both):
        found = compared(cli, output, output, "--sample", "40", "-k", "3")
        assert tuple(found) == output.kinds
        for near in found.values():
            assert (near["rows"], near["k"], near["overlap"], near["same_nearest"]) == (40, 3, 1, 1)
            assert near["cosine"] == pytest.approx(1, abs=1e-5)
    shown = cli("diff", both.storage.root, both.storage.root).stdout
    assert "dense 256, multi-vector 256" in shown
    assert "multi-vector: of " in shown


def test_neighbours_of_other_kinds_are_those_of_a_plain_search(
    cli, sparse: Output, tokens: Output, splade: Path, tmp_path: Path
) -> None:
    limited = embed(tmp_path / "out", splade, output={"sparse_top_k": 2})
    rows = [output.to_arrow(["sparse"])["sparse"].to_pylist() for output in (sparse, limited)]
    size = 1 + max(max(row["indices"]) for row in rows[0])
    matrices = [np.zeros((len(one), size)) for one in rows]
    for matrix, one in zip(matrices, rows, strict=True):
        for number, row in enumerate(one):
            matrix[number, row["indices"]] = row["values"]
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    stored = [np.array(row, np.float32) for row in tokens.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    late = np.array([[(a @ b.T).max(1).sum() for b in stored] for a in stored])
    pairs = {
        "sparse": (*(matrix @ matrix.T for matrix in matrices),),
        "sparse/multi_vector": (matrices[0] @ matrices[0].T, late),
    }
    for (kinds, both), other in zip(pairs.items(), (limited, tokens), strict=True):
        found = compared(cli, sparse, other, "--sample", str(len(late)), "-k", "1")[kinds]
        nearest = [np.where(np.eye(len(late), dtype=bool), -1, matrix).argmax(1) for matrix in both]
        assert found["rows"] == len(late)
        assert found["same_nearest"] == pytest.approx((nearest[0] == nearest[1]).mean(), abs=1.5 / len(late))
    assert compared(cli, sparse, limited)["sparse"]["cosine"] == pytest.approx(
        (matrices[0] * matrices[1]).sum(1).mean(), abs=1e-5
    )


# -- search ------------------------------------------------------------------------------------------------------------


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


def test_doctor_takes_models_of_all_kinds(splade: Path, colbert: Path, cli: Run) -> None:
    for model in (splade, colbert):
        shown = cli("doctor", SOURCE, "--model", model, "--compare", "5", "--set", "ray.address=127.0.0.1:9", code=1).stdout
        assert "dimensions, up to" in shown
        assert "vectors to sentence-transformers over 5 texts: " in shown


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


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    """Killed at ten random moments, a run of all kinds ends with the bytes of a run that was left alone."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        texts = [f"{number} {text}" for text in everyday()]
        pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), tmp_path / "in" / f"{number}.parquet")
    options = ["--model", MINI, "--keep", "id", "--set", "output.vectors=dense,multi_vector", "--set", "executor=local"]
    started = time.monotonic()
    subprocess.run(command("embed", tmp_path / "in", tmp_path / "alone", *options), check=True, capture_output=True)
    whole = time.monotonic() - started
    seed = random.Random(30)
    for _ in range(10):
        process = subprocess.Popen(
            command("embed", tmp_path / "in", tmp_path / "out", *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(whole * seed.uniform(0.3, 0.7))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command("embed", tmp_path / "in", tmp_path / "out", *options), check=True, capture_output=True)
    assert shards(tmp_path / "out") == shards(tmp_path / "alone")
    output = Output.open(tmp_path / "out")
    assert output.verify(tmp_path / "in").problems == ()
    assert output.totals.rows == 12 * len(everyday())
    assert not leftovers(tmp_path / "out")


def test_scorers_take_rows_without_vectors() -> None:
    rows = TokenVectors.of_lengths(np.eye(3, dtype=np.float16), np.array([0, 2, 0, 1, 0]))
    scorer = MaxSimScorer(
        MultiVectorFormat(3), [np.array([[1, 0, 0], [0, 0, 2]], np.float32), np.empty((0, 3), np.float32)]
    )
    assert scorer.pairs(np.array([0, 0, 1, 1, 0]), rows, np.arange(5)).tolist() == [0, 1, 0, 0, 0]
    assert scorer.pairs(np.array([1, 0, 0]), rows, np.array([3, 3, 1])).tolist() == [0, 2, 1]


@pytest.mark.parametrize("name", ["sparse", "tokens", "both"])
def test_a_sample_is_embedded_again(name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(name).verify(sample=40)
    assert found.problems == ()
    assert (found.sampled, found.agreement > 0.99999) == (40, True)


def test_a_sample_shows_the_least_cosine_of_each_column(
    both: Output, tokens: Output, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = COSINES["dense"]
    monkeypatch.setitem(COSINES, "dense", lambda one, other: same(one, other) - np.float32(0.00005))
    sample = ("--sample", "20", "--set", "encoder.precision=fp32", "--set", "encoder.device=cpu")
    shown = cli("verify", both.storage.root, *sample).stdout
    found = re.search(r"cosine at least ([\d.]+) in embedding and ([\d.]+) in multi_vector; ", shown)
    assert found is not None
    assert (float(found[1]), float(found[2])) == pytest.approx((0.99995, 1), abs=2e-6)
    said = json.loads(cli("verify", both.storage.root, *sample, "--json").stdout)
    assert said["agreements"].keys() == {"embedding", "multi_vector"}
    assert said["agreement"] == said["agreements"]["embedding"] < said["agreements"]["multi_vector"]
    assert re.search(r"cosine at least [\d.]+; ", cli("verify", tokens.storage.root, *sample).stdout)
    assert json.loads(cli("verify", both.storage.root, "--json").stdout)["agreements"] == {}


def test_empty_sparse_vectors_are_counted(splade: Path, sparse: Output, cli: Run, tmp_path: Path) -> None:
    rows = sparse.to_arrow(["sparse"])["sparse"].to_pylist()
    threshold = sorted(max(row["values"]) for row in rows)[20]  # the largest value of 20 rows is below it
    options = ("--model", splade, "--set", "executor=local", "--set", f"output.sparse_threshold={threshold}")
    options += ("--set", "encoder.precision=fp32")
    done = cli("embed", SOURCE, tmp_path / "out", *options)
    output = Output.open(tmp_path / "out")
    count = sum(not row["values"] for row in output.to_arrow(["sparse"])["sparse"].to_pylist())
    assert 10 <= count <= 30
    said = f"{count} rows have an empty sparse vector"
    assert f"warning: {said}: the model gave no value, or none of at least output.sparse_threshold" in done.stderr
    assert said in cli("status", tmp_path / "out").stdout.splitlines()
    footers = [pq.read_schema(path).metadata[b"kosbert_ray"] for path in (tmp_path / "out").glob("*.parquet")]
    assert sum(json.loads(footer).get("empty_sparse", 0) for footer in footers) == count
    shutil.rmtree(tmp_path / "out" / "_kosbert" / "receipts")  # restored from the footers
    assert Output.open(tmp_path / "out").totals.empty_sparse == count


def test_outputs_without_empty_vectors_have_the_records_of_earlier_versions(sparse: Output, both: Output) -> None:
    for output in (sparse, both):
        for path in Path(output.storage.root).glob("*.parquet"):
            assert "empty_sparse" not in json.loads(pq.read_schema(path).metadata[b"kosbert_ray"])
        for path in Path(output.storage.root).glob("_kosbert/*/*.parquet"):
            assert "empty_sparse" not in pq.read_schema(path).names
        assert output.totals.empty_sparse == 0


# -- report ------------------------------------------------------------------------------------------------------------


class Page:
    """The report of an output, with its sections and the summary."""

    def __init__(self, cli: Run, output: Output, target: Path, *arguments: str) -> None:
        cli("report", output.storage.root, "-o", target, *arguments)
        self.html = target.read_text("utf-8")
        body = self.html[self.html.index("<body>") :]
        self.warnings = [html.unescape(one) for one in re.findall('<p class="bad">(.*?)</p>', body)]
        self.sections = {html.unescape(one.partition("</h2>")[0]): one for one in body.split("<section><h2>")[1:]}
        self.ids = re.findall(r'<div id="([^"]+)"', body)

    def about(self, heading: str) -> str:
        return html.unescape(re.findall('<p class="faint">(.*?)</p>', self.sections[heading])[0])

    def table(self, heading: str) -> list[list[str]]:
        rows = re.findall("<tr>(.*?)</tr>", self.sections[heading], re.S)
        return [[html.unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]

    @property
    def summary(self) -> dict[str, str]:
        return dict(self.table(next(iter(self.sections))))

    def figure(self, name: str) -> list[dict[str, Any]]:
        """The traces of a figure, as plotly gets them."""
        start = re.search(f'Plotly.newPlot\\(\\s*"{name}",\\s*', self.html)
        assert start is not None
        return json.JSONDecoder().raw_decode(self.html[start.end() :])[0]


def matrix_of(output: Output, dimension: int) -> np.ndarray:
    rows = output.to_arrow(["sparse"])["sparse"].to_pylist()
    matrix = np.zeros((len(rows), dimension))
    for row, one in enumerate(rows):
        matrix[row, one["indices"]] = one["values"]
    return matrix


def bytes_a_row(output: Output, column: str) -> float:
    total = 0
    for shard in output.shards():
        metadata = pq.read_metadata(Path(output.storage.root) / shard)
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
            total += sum(one.total_compressed_size for one in chunks if one.path_in_schema.startswith(f"{column}."))
    return total / output.totals.rows


def random_cosine(directions: np.ndarray) -> float:
    """The mean cosine of all pairs of different rows."""
    n = len(directions)
    return float((np.square(directions.sum(0)).sum() - np.square(directions).sum()) / (n * (n - 1)))


def nearest(directions: np.ndarray, texts: list[str]) -> tuple[float, set[str]]:
    cosines = directions @ directions.T - 3 * np.eye(len(directions))
    first, second = np.unravel_index(cosines.argmax(), cosines.shape)
    return float(cosines.max()), {texts[first], texts[second]}


def values(stored: Any) -> list[float]:
    """The numbers of an array in a figure, which plotly writes as base64 where there are many."""
    if isinstance(stored, list):
        return stored
    return np.frombuffer(base64.b64decode(stored["bdata"]), stored["dtype"]).tolist()


def number(text: str, pattern: str) -> float:
    found = re.search(pattern.replace("#", r"(-?[\d,]+(?:\.\d+)?)"), text)
    assert found is not None, (pattern, text)
    return float(found[1].replace(",", ""))


def test_a_report_of_sparse_vectors(sparse: Output, splade: Path, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, sparse, tmp_path / "r.html")
    tokenizer = AutoTokenizer.from_pretrained(splade)
    matrix = matrix_of(sparse, sparse.record.fingerprint["sparse_dimension"])
    counts, summary = (matrix > 0).sum(1), page.summary
    assert number(summary["Values per row"], "median #") == round(np.median(counts))
    assert number(summary["Values per row"], "percentile #") == round(np.quantile(counts, 0.95))
    assert number(summary["Values per row"], "# of 520 sampled vectors empty") == 0
    used = int((matrix > 0).any(0).sum())
    assert summary["Dimensions"] == f"{used:,} of {matrix.shape[1]:,} used in the sampled rows"
    directions = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert number(summary["Anisotropy"], "^#, the mean") == pytest.approx(random_cosine(directions), abs=0.005)
    assert summary["Size on disk"] == f"{data_size(round(bytes_a_row(sparse, 'sparse')))} a row"
    heaviest = np.argsort(-matrix.sum(0), kind="stable")[:20]
    assert page.table("Heaviest dimensions") == [
        ["token", "share of the rows", "mean value above 0"],
        *(
            [token, f"{(column > 0).mean():.1%}", f"{column[column > 0].mean():.3f}"]
            for token, column in zip(tokenizer.convert_ids_to_tokens(heaviest), matrix.T[heaviest], strict=True)
        ),
    ]
    (bars,) = page.figure("values-per-row")
    assert sum(values(bars["y"])) == 520
    cosine, pair = nearest(directions, sparse.to_arrow(["text"])["text"].to_pylist())
    best = page.table("Nearest pairs")[1]
    assert (float(best[0]), {*best[1:]}) == (pytest.approx(cosine, abs=0.001), pair)
    assert "Cosines are those of the sparse vectors." in page.about("Nearest pairs")
    assert "truncated SVD" in page.about("Map")
    assert page.warnings == []


def test_a_report_of_token_vectors(tokens: Output, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, tokens, tmp_path / "r.html")
    rows = [np.array(row, np.float32) for row in tokens.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    counts, summary = [len(row) for row in rows], page.summary
    assert number(summary["Vectors per row"], "median #") == round(np.median(counts))
    assert number(summary["Vectors per row"], "percentile #") == round(np.quantile(counts, 0.95))
    assert number(summary["Vectors per row"], "each of # numbers") == DIMENSION
    means = np.array([(row / np.linalg.norm(row, axis=1, keepdims=True)).mean(0) for row in rows])
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert number(summary["Anisotropy"], "^#, the mean") == pytest.approx(random_cosine(directions), abs=0.01)
    assert summary["Size on disk"] == f"{data_size(round(bytes_a_row(tokens, 'multi_vector')))} a row"
    (bars,) = page.figure("vectors-per-row")
    assert sum(values(bars["y"])) == 520
    cosine, pair = nearest(directions, tokens.to_arrow(["text"])["text"].to_pylist())
    best = page.table("Nearest pairs")[1]
    assert (float(best[0]), {*best[1:]}) == (pytest.approx(cosine, abs=0.001), pair)
    assert "mean token vectors, not MaxSim" in page.about("Nearest pairs")
    assert "the mean of its token vectors" in page.about("Map")


def test_a_report_of_three_kinds_names_them(three: Output, cli: Run, tmp_path: Path) -> None:
    page = Page(cli, three, tmp_path / "r.html")
    alone = Page(cli, embed(tmp_path / "dense", three.job.model.name), tmp_path / "dense.html")
    for name in ("Anisotropy", "Dimensions"):
        assert page.summary[f"{name} (dense vectors)"] == alone.summary[name]
    for name in ("Map", "Spread", "Similarity", "Nearest pairs", "Most isolated rows"):
        assert page.about(f"{name} (dense vectors)") == alone.about(name)
    assert page.table("Nearest pairs (dense vectors)") == alone.table("Nearest pairs")
    matrix = matrix_of(three, three.record.fingerprint["sparse_dimension"])
    found = page.summary["Values per row (sparse vectors)"]
    assert number(found, "median #") == round(np.median((matrix > 0).sum(1)))
    counts = [len(row) for row in three.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    assert number(page.summary["Vectors per row (token vectors)"], "median #") == round(np.median(counts))
    assert {"Similarity (sparse vectors)", "Similarity (token vectors)", "Heaviest dimensions (sparse vectors)"} <= {
        *page.sections
    }
    assert len({*page.ids}) == len(page.ids) > 8
    assert not any("vectors" in name for name in alone.sections)


def test_dimensions_of_an_autoencoder_are_numbered(cli: Run, tmp_path: Path) -> None:
    output = embed(tmp_path / "out", save_autoencoder(tmp_path, "bert"), output={"vectors": ["sparse"]})
    page = Page(cli, output, tmp_path / "r.html")
    heading, *rows = page.table("Heaviest dimensions")
    matrix = matrix_of(output, output.record.fingerprint["sparse_dimension"])
    assert heading[0] == "dimension"
    assert [int(row[0]) for row in rows] == np.argsort(-matrix.sum(0), kind="stable")[:20].tolist()


def test_empty_sparse_vectors_are_a_warning(sparse: Output, splade: Path, cli: Run, tmp_path: Path) -> None:
    largest = matrix_of(sparse, sparse.record.fingerprint["sparse_dimension"]).max(1)
    threshold = float(np.quantile(largest, 0.1))
    output = embed(tmp_path / "out", splade, output={"sparse_threshold": threshold})
    empty = sum(not row["indices"] for row in output.to_arrow(["sparse"])["sparse"].to_pylist())
    assert 10 < empty < 100
    page = Page(cli, output, tmp_path / "r.html")
    assert len(page.warnings) == 1
    assert page.warnings[0].startswith(f"Empty sparse vectors: {empty} of 520 sampled rows.")
    assert f"{empty} of 520 sampled vectors empty" in page.summary["Values per row"]
    sizes = {row[0]: int(row[1]) for row in page.table("Clusters")[1:]}
    assert sizes["others"] == empty and sum(sizes.values()) == 520
    assert [float(row[0]) for row in page.table("Most isolated rows")[1:]] == [0] * 5
    every = embed(tmp_path / "none", splade, output={"sparse_threshold": 1e6})
    page = Page(cli, every, tmp_path / "r.html")
    assert page.warnings[0].startswith("Empty sparse vectors: 520 of 520 sampled rows.")
    assert not {"Values per row", "Similarity", "Heaviest dimensions"} & {*page.sections}
    assert np.isfinite(values(page.figure("map")[0]["x"])).all()


def test_rows_without_token_vectors_are_a_warning() -> None:
    vectors = TokenVectors.of_lengths(np.array([[3, 0], [0, 2], [5, 0]], np.float16), np.array([2, 0, 1]))
    kept = TokenMeans.of(vectors).joined([TokenMeans.of(TokenVectors.empty(2, 1))])
    assert kept.means.tolist() == [[0.5, 0.5], [0, 0], [1, 0], [0, 0]]
    found = TokenFigures.of(kept, Column(MultiVectorFormat(2), 10.0, None))
    (warning,) = found.warnings(Words("en"))
    assert warning.startswith("Rows without token vectors: 2 of 4 sampled.")
    assert found.cosines == pytest.approx(np.sqrt(0.5))


def test_a_sample_of_several_kinds_has_the_same_rows(both: Output) -> None:
    lengths: list[int] = []

    def keep(vectors: TokenVectors) -> TokenVectors:
        lengths.append(len(vectors))
        return vectors

    found = sample_kinds(both, 60, 1, ["id"], None, {"dense": lambda vectors: vectors, "multi_vector": keep})
    assert sum(lengths) == 60 and len(lengths) >= len(both.shards()) > 1  # reduced shard by shard
    table = both.to_arrow()
    place = {id: row for row, id in enumerate(table["id"].to_pylist())}
    rows = [place[id] for id in found["dense"].table["id"].to_pylist()]
    assert np.allclose(found["dense"].vectors, np.array(table["embedding"].take(rows).to_pylist(), np.float32))
    for tokens, right in zip(
        found["multi_vector"].vectors.to_list(), table["multi_vector"].take(rows).to_pylist(), strict=True
    ):
        assert np.array_equal(tokens, np.array(right, tokens.dtype))


KEPT = {"MaxSim", "SVD", "SNE", "truncated", "output", "sparse", "threshold"}  # these stay as they are in Korean


SAID = ("Values per row", "Vectors per row", "Dimensions", "Anisotropy", "Size on disk")


@pytest.mark.parametrize("name", ["three", "sparse", "tokens", "empty"])
def test_a_korean_report_of_all_kinds_is_korean(
    name: str, splade: Path, cli: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    limits = {"sparse_threshold": 1e6}
    output = embed(tmp_path / "out", splade, output=limits) if name == "empty" else request.getfixturevalue(name)
    english = Page(cli, output, tmp_path / "en.html")
    korean = Page(cli, output, tmp_path / "ko.html", "--lang", "ko")
    said = Words("ko")
    for one, other in zip(english.sections, korean.sections, strict=True):
        name, _, kind = one.partition(" (")
        assert other == said.heading(name, kind.removesuffix(")") or None)
    lines = [*korean.sections, *korean.warnings, *korean.summary]
    lines += [korean.about(name) for name, section in korean.sections.items() if 'class="faint"' in section]
    lines += [cell for name in [*korean.sections][1:] for row in korean.table(name)[:1] for cell in row]
    of_vectors = {KOREAN[name] for name in SAID}
    lines += [value for name, value in korean.summary.items() if name.partition("(")[0] in of_vectors]
    lines += json.loads("[" + ",".join(re.findall(r'"title":\{"text":("[^"]*")', korean.html)) + "]")
    for line in lines:
        left = {*re.findall("[A-Za-z]{3,}", line)} - KEPT
        assert not left - {"kosbert", "mini"}, line
    assert len(lines) > 30
