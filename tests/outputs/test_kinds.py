"""Outputs of sparse and token vectors: what they hold, and that they resume and verify."""

from __future__ import annotations

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
from kind_outputs import ENCODER, QUERIES, SOURCE, embed
from multi_vector_models import DIMENSION
from sparse_models import save_autoencoder

import kosbert_ray
from kosbert_ray import Output
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.shards.shard import checksum
from kosbert_ray.vectors.similarity import COSINES
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

PROFILE = "plan.profiles={gpu: {tokens_per_second: 1000000}}"


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


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_takes_models_of_all_kinds(splade: Path, colbert: Path, cli: Run) -> None:
    for model in (splade, colbert):
        shown = cli("doctor", SOURCE, "--model", model, "--compare", "5", "--set", "ray.address=127.0.0.1:9", code=1).stdout
        assert "dimensions, up to" in shown
        assert "vectors to sentence-transformers over 5 texts: " in shown


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
