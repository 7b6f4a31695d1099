"""``kosbert-ray load`` of sparse and token vectors: the database holds and finds what the output does."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import everyday
from keyed_rows import write
from kills import kill_at_random
from multi_vector_models import save_colbert
from pgvector import SparseVector
from pgvector.psycopg import register_vector
from qdrant_client import QdrantClient, models
from stores import KINDS, Store, store_of

from kosbert_ray import Output
from kosbert_ray.outputs.load.base import TAKEN_BY
from kosbert_ray.outputs.load.table import DESTINATIONS
from kosbert_ray.shards.fingerprint import digest_of
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.vectors.sparse import SparseVectors

SENTENCES = everyday()
BASE = ["--set", "slice.max_rows=20", "--set", "encoder.precision=fp32", "--set", "executor=local", "--prune"]
QUERIES = ["비가 오는 날에 무엇을 먹을까?", "지하철을 갈아타는 곳"]
MINI = "bundled:kosbert-mini"
VECTORS = ("embedding", "sparse", "multi_vector")
# The kinds of an output, and what it is embedded with besides a model.
JOBS = {
    "sparse": ["--set", "output.sparse_top_k=200"],
    "tokens": [],
    "both": ["--model", MINI, "--set", "output.vectors=dense,multi_vector"],
}
CASES = [
    ("postgresql", "sparse"),
    ("qdrant", "sparse"),
    ("qdrant", "both"),
    ("qdrant", "tokens"),
    ("lancedb", "tokens"),
    ("lancedb", "both"),
]


@pytest.fixture(scope="module")
def jobs(splade: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """Options of ``embed`` for each kind of output."""
    expansion = {"strategy": "fixed", "length": 16, "attend": False}
    colbert = save_colbert(tmp_path_factory.mktemp("colbert"), "bert", (".", ","), query_expansion=expansion)
    every = {"sparse": ["--model", splade], "tokens": ["--model", colbert], "both": []}
    return {name: [*JOBS[name], *every[name], *BASE, "--keep", "key", "--set", "max_rejected=0.5"] for name in JOBS}


@pytest.fixture(scope="module")
def made(cli, jobs: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes an input and its output of a kind, once; tests that change them copy both."""
    done: dict[str, Path] = {}

    def make(job: str) -> Path:
        if job not in done:
            folder = tmp_path_factory.mktemp("말뭉치") / job
            write(folder / "in", "a", [*SENTENCES[:50], None, *SENTENCES[50:70]])
            write(folder / "in", "b", SENTENCES[70:130], 1000)
            cli("embed", folder / "in", folder / "out", *jobs[job])
            done[job] = folder
        return done[job]

    return make


@pytest.fixture(scope="module")
def every(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of all three kinds: that of dense and token vectors, with random sparse vectors put into its shards.

    Its second row has no sparse value, and its third no token vector.
    """
    folder = tmp_path_factory.mktemp("every") / "out"
    shutil.copytree(made("both") / "out", folder)
    record = json.loads((folder / "_kosbert" / "job.json").read_text("utf-8"))
    record["fingerprint"] |= {"vectors": ["dense", "sparse", "multi_vector"], "sparse": ["test"], "sparse_dimension": 300}
    record["sha256"] = digest_of(record["fingerprint"])
    (folder / "_kosbert" / "job.json").write_text(json.dumps(record), "utf-8")
    rng = np.random.default_rng(0)
    for number, shard in enumerate(Output.open(folder).shards()):
        table = pq.read_table(folder / shard)
        rows = np.maximum(rng.normal(size=(len(table), 300)).astype(np.float32) - 1, 0)
        if number == 0:
            rows[1] = 0
            tokens = table["multi_vector"].to_pylist()
            tokens[2] = []
            place = table.column_names.index("multi_vector")
            field = table.schema.field(place)
            table = table.set_column(place, field, pa.array(tokens, field.type))
        item = SparseFormat(300)
        place = table.column_names.index("multi_vector")
        pq.write_table(table.add_column(place, item.field(), item.array(SparseVectors.of_rows(rows))), folder / shard)
    return folder


def change(cli, folder: Path, options: list[object]) -> None:
    """A file changes, one is removed and one is new; then the next run of the output."""
    write(folder / "in", "a", ["바뀐 문장입니다.", *SENTENCES[1:40]])
    (folder / "in" / "b.jsonl").unlink()
    write(folder / "in", "d", SENTENCES[200:230], 3000)
    cli("embed", folder / "in", folder / "out", *options)


def require_same(store: Store, table: str, out: Path, lacking: tuple[str, ...] = ()) -> None:
    """The table holds each row of the output once, with the output's numbers."""
    output = Output.open(out)
    columns = [item.column for item in output.formats if item.column not in lacking]
    found = {row["key"]: row for row in store.read(table)}
    truth = {
        row["key"]: {**row, "shard": shard} for shard in output.shards() for row in pq.read_table(out / shard).to_pylist()
    }
    assert len(store.read(table)) == len(found)
    assert {*found} == {*truth}
    for key, row in found.items():
        expected = truth[key]
        assert (row["kosbert_shard"], row["text"]) == (expected["shard"], expected["text"])
        assert not {*VECTORS} & {*row} - {*columns}
        for column in columns:
            require_equal(row.get(column), expected[column], store, column)


def require_equal(found: Any, expected: Any, store: Store, column: str) -> None:
    """Vectors are equal as float32; Qdrant normalizes dense ones, and has no vector for a text without tokens."""
    if column == "sparse":
        assert list(found["indices"]) == expected["indices"]
        assert np.array_equal(np.array(found["values"], np.float32), np.array(expected["values"], np.float32))
    elif column == "multi_vector" or store.kind != "qdrant":
        assert np.array_equal(np.array(found or [], np.float32), np.array(expected, np.float32))
    else:
        assert np.allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-6)


def of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return store_of(kind, tmp_path / "저장소", request.getfixturevalue)


# -- what a table holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "job"), CASES)
def test_every_vector_is_there_once_and_again_after_later_runs(
    kind: str, job: str, request, cli, made, jobs, tmp_path: Path
) -> None:
    store, folder = of(kind, request, tmp_path), tmp_path / job
    shutil.copytree(made(job), folder)
    arguments = ["load", folder / "out", store.address, "--table", f"kinds_{job}"]
    assert cli(*arguments, "--dry-run").stdout.startswith("to load: 130 rows added, 0 replaced, 0 removed")
    assert cli(*arguments).stdout.startswith("loaded: 130 rows added, 0 replaced, 0 removed")
    require_same(store, f"kinds_{job}", folder / "out")
    assert cli(*arguments).stdout.startswith("loaded: 0 rows added, 0 replaced, 0 removed, 0 bytes")
    change(cli, folder, jobs[job])
    assert "70 rows of this output" in cli(*arguments).stdout
    require_same(store, f"kinds_{job}", folder / "out")
    store.drop(f"kinds_{job}")


@pytest.mark.parametrize(("kind", "job"), [("postgresql", "sparse"), ("qdrant", "both"), ("lancedb", "tokens")])
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_lose_and_repeat_nothing(kind: str, job: str, kills: int, request, cli, made, jobs, tmp_path: Path) -> None:
    """In a first load, and in one that replaces and deletes."""
    store, folder, seed = of(kind, request, tmp_path), tmp_path / job, random.Random(kills)
    shutil.copytree(made(job), folder)
    arguments = ["load", folder / "out", store.address, "--table", f"kills_{job}"]
    for round_ in ("first", "later"):
        if round_ == "later":
            change(cli, folder, jobs[job])
        kill_at_random(arguments, kills, seed, 1.3)
        cli(*arguments)
        require_same(store, f"kills_{job}", folder / "out")
    store.drop(f"kills_{job}")


@pytest.mark.parametrize(("kind", "lacking"), [("postgresql", "multi_vector"), ("qdrant", ""), ("lancedb", "sparse")])
def test_all_kinds_that_a_database_has_are_loaded_at_once(
    kind: str, lacking: str, request, cli, told, every: Path, tmp_path: Path
) -> None:
    store = of(kind, request, tmp_path)
    arguments = ["load", every, store.address, "--table", "docs_every"]
    columns = [column for column in VECTORS if column != lacking]
    remedy = " ".join(f"--column {column}" for column in columns)
    if lacking:
        name = "pgvector" if kind == "postgresql" else "LanceDB"
        message = told(*arguments, code=2)
        assert (
            f"'{lacking}' holds {lacking.replace('_', '-')} vectors, which {name} does not take; load {remedy}" in message
        )
        with pytest.raises((psycopg.Error, ValueError)):  # there is no table
            store.read("docs_every")
        arguments += remedy.split()
    cli(*arguments)
    require_same(store, "docs_every", every, (lacking,))
    store.delete_two_rows("docs_every")
    assert "replaced" in cli(*arguments).stdout
    require_same(store, "docs_every", every, (lacking,))
    store.drop("docs_every")


def test_half_precision_is_kept(cli, request, splade: Path, tmp_path: Path) -> None:
    """Values too small for float16 are stored as 0, which pgvector has no place for."""
    write(tmp_path / "in", "a", SENTENCES[:30])
    options = [*BASE, "--keep", "key", "--set"]
    cli("embed", tmp_path / "in", tmp_path / "s", *options, "output.sparse_dtype=float16", "--model", splade)
    cli("embed", tmp_path / "in", tmp_path / "t", *options, "output.multi_vector_dtype=float16", *JOBS["both"])
    for kind, out in (("postgresql", "s"), ("qdrant", "s"), ("qdrant", "t"), ("lancedb", "t")):
        store = of(kind, request, tmp_path)
        cli("load", tmp_path / out, store.address, "--table", f"half_{out}", "--no-index")
        require_same(store, f"half_{out}", tmp_path / out)
        store.drop(f"half_{out}")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_vectors_are_left_out(kind: str, request, cli, splade: Path, tmp_path: Path) -> None:
    store = of(kind, request, tmp_path)
    write(tmp_path / "in", "a", [*SENTENCES[:10], None, *SENTENCES[10:25], ""])
    model = JOBS["both"] if kind != "postgresql" else [*JOBS["sparse"], "--model", splade]
    options = [*model, *BASE, "--set", "on_bad_row=null_vector", "--set", "max_rejected=5", "--keep", "key"]
    cli("embed", tmp_path / "in", tmp_path / "out", *options)
    done = cli("load", tmp_path / "out", store.address, "--table", "kinds_null")
    assert "25 rows added" in done.stdout and "2 rows left out (rejected)" in done.stdout
    assert sorted(row["key"] for row in store.read("kinds_null")) == [*range(10), *range(11, 26)]
    store.drop("kinds_null")


# -- what a search finds -----------------------------------------------------------------------------------------------


def scores_of(output: Output, by: str) -> list[dict[int, float]]:
    """The score of every row by its key, best first, for each query, by the output's own search."""
    hits = output.search(QUERIES, top_k=1000, by=by)
    return [{hit.columns["key"]: hit.score for hit in hits if hit.query == query} for query in QUERIES]


def require_nearest(found: list[tuple[int, float]], scores: dict[int, float], rtol: float = 1e-5) -> None:
    """The ten rows that a database found are the nearest, up to rows whose scores differ by rounding."""
    best = [*scores.values()][:10]
    assert np.allclose([scores[key] for key, _ in found], best, rtol=rtol)
    assert np.allclose([score for _, score in found], best, rtol=rtol)


@pytest.mark.parametrize("index", [True, False])
def test_pgvector_finds_the_rows_that_search_finds(index: bool, cli, postgresql: str, made) -> None:
    out = made("sparse") / "out"
    cli("load", out, postgresql, "--table", "kinds_find", *([] if index else ["--no-index"]))
    output = Output.open(out, encoder={"precision": "fp32"})
    queries = output.encoder().encode_sparse(QUERIES)
    with psycopg.connect(postgresql, autocommit=True) as connection:
        register_vector(connection)
        indexes = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'kinds_find'").fetchall()
        assert any("hnsw (sparse sparsevec_ip_ops)" in definition for (definition,) in indexes) == index
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET hnsw.ef_search = 200")
        for query, scores in zip(queries, scores_of(output, "sparse"), strict=True):
            sql = "SELECT key, -(sparse <#> %s) FROM kinds_find ORDER BY sparse <#> %s LIMIT 10"
            vector = SparseVector(query)
            plan = str(connection.execute(f"EXPLAIN {sql}", [vector, vector]).fetchall())
            assert ("_kosbert_hnsw" in plan) == index
            require_nearest(connection.execute(sql, [vector, vector]).fetchall(), scores)
        connection.execute("DROP TABLE kinds_find")


@pytest.mark.parametrize(("job", "by"), [("sparse", "sparse"), ("tokens", "multi_vector"), ("both", "multi_vector")])
def test_qdrant_finds_the_rows_that_search_finds(job: str, by: str, cli, made, tmp_path: Path) -> None:
    out = made(job) / "out"
    cli("load", out, f"qdrant:{tmp_path / 'points'}", "--table", "docs")
    output = Output.open(out, encoder={"precision": "fp32"})
    encoder = output.encoder()
    if by == "sparse":
        queries = [models.SparseVector(indices=row.indices, values=row.data) for row in encoder.encode_sparse(QUERIES)]
    else:
        queries = [row.astype(np.float32).tolist() for row in encoder.encode_multi_vector(QUERIES, task="query")]
    client = QdrantClient(path=str(tmp_path / "points"))
    for query, scores in zip(queries, scores_of(output, by), strict=True):
        points = client.query_points("docs", query, using=by, limit=10).points
        require_nearest([(point.payload["key"], point.score) for point in points], scores)
    client.close()


@pytest.mark.parametrize("job", ["tokens", "both"])
def test_lancedb_finds_the_rows_that_search_finds(job: str, cli, made, tmp_path: Path, monkeypatch) -> None:
    """Also in a table that is large enough to be indexed."""
    from kosbert_ray.outputs.load import lance_db

    monkeypatch.setattr(lance_db, "MIN_INDEXED", 100)
    out = made(job) / "out"
    cli("load", out, f"lancedb:{tmp_path / 'tables'}", "--table", "docs")
    output = Output.open(out, encoder={"precision": "fp32"})
    table = lancedb.connect(tmp_path / "tables").open_table("docs")
    assert [index.columns for index in table.list_indices()] == ([["embedding"]] if job == "both" else [])
    queries = output.encoder().encode_multi_vector(QUERIES, task="query")
    for query, scores in zip(queries, scores_of(output, "multi_vector"), strict=True):
        search = table.search(query.astype(np.float32), vector_column_name="multi_vector").distance_type("cosine")
        found = search.limit(10).to_list()
        # The distance is the sum over the query's tokens of 1 - cosine. Token vectors were rounded to half precision since
        # they had length 1.
        require_nearest([(row["key"], len(query) - row["_distance"]) for row in found], scores, 1e-3)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_vectors_that_a_database_lacks_are_refused_by_name(cli, told, made, postgresql: str, tmp_path: Path) -> None:
    message = told("load", made("tokens") / "out", postgresql, "--table", "kinds_no", code=2)
    assert (
        message
        == "column 'multi_vector' holds multi-vector vectors, which pgvector does not take; load it into Qdrant or LanceDB"
    )
    message = told("load", made("sparse") / "out", f"lancedb:{tmp_path / 'x'}", code=2)
    assert message == "column 'sparse' holds sparse vectors, which LanceDB does not take; load it into PostgreSQL or Qdrant"
    message = told("load", made("both") / "out", postgresql, "--column", "multi_vector", code=2)
    assert message.endswith("; load --column embedding, or load it into Qdrant or LanceDB")
    assert not lancedb.connect(tmp_path / "x").table_names()
    assert "its columns of vectors are sparse" in told(
        "load", made("sparse") / "out", postgresql, "--column", "embedding", code=1
    )


def test_a_remedy_names_the_columns_of_all_kinds(cli, told, tmp_path: Path) -> None:
    write(tmp_path / "in", "a", SENTENCES[:30])
    cli("embed", tmp_path / "in", tmp_path / "out", *JOBS["both"], *BASE, "--set", "output.dtype=int8,float32")
    message = told("load", tmp_path / "out", f"lancedb:{tmp_path / 'tables'}", code=2)
    assert message.endswith("dot product is no cosine; load --column embedding_float32 --column multi_vector")


@pytest.mark.parametrize("kind", TAKEN_BY)
def test_messages_name_the_databases_that_take_a_kind(kind: str) -> None:
    modules = {name: import_module(f"kosbert_ray.outputs.load.{name}") for name in DESTINATIONS.values()}
    names = {"postgresql": "PostgreSQL", "qdrant": "Qdrant", "lance_db": "LanceDB"}
    assert TAKEN_BY[kind] == " or ".join(names[name] for name, module in modules.items() if kind in module.VECTOR_TYPES)


def test_sparse_vectors_with_too_many_numbers_are_refused(
    cli, told, postgresql: str, splade: Path, tmp_path: Path, monkeypatch
) -> None:
    """pgvector itself refuses to index what is loaded with --no-index here."""
    from kosbert_ray.outputs.load import postgresql as module

    write(tmp_path / "in", "a", SENTENCES[:30])
    cli("embed", tmp_path / "in", tmp_path / "out", "--model", splade, *BASE, "--keep", "key")
    arguments = ["load", tmp_path / "out", postgresql, "--table", "kinds_wide"]
    message = told(*arguments, code=2)
    assert "column 'sparse' has vectors of up to 1,9" in message
    assert "load with --no-index, or embed with output.sparse_top_k=1000" in message
    store = store_of("postgresql", tmp_path, lambda _: postgresql)
    with pytest.raises(psycopg.Error):  # there is no table
        store.read("kinds_wide")
    cli(*arguments, "--no-index")
    require_same(store, "kinds_wide", tmp_path / "out")
    with pytest.raises(psycopg.Error, match="more than 1000 non-zero elements"):
        store.execute("CREATE INDEX ON kinds_wide USING hnsw (sparse sparsevec_ip_ops)")
    assert "load with --no-index" in told(*arguments, code=2)  # although no row is to be loaded
    monkeypatch.setattr(module, "MAX_NONZERO", 1500)
    assert cli(*arguments, "--no-index").stdout.startswith("loaded: 0 rows")  # those that are there are not counted again
    store.drop("kinds_wide")
    assert told(*arguments, "--no-index", code=2).endswith("stores up to 1,500; embed with output.sparse_top_k=1500")


def test_pgvector_stores_16000_numbers_and_no_more(postgresql: str) -> None:
    from kosbert_ray.outputs.load.postgresql import MAX_NONZERO

    with psycopg.connect(postgresql, autocommit=True) as connection:
        register_vector(connection)
        vectors = [SparseVector(dict.fromkeys(range(MAX_NONZERO + more), 1.0), 30_000) for more in (0, 1)]
        connection.execute("SELECT %b", [vectors[0]])
        with pytest.raises(psycopg.Error, match="more than 16000 non-zero elements"):
            connection.execute("SELECT %b", [vectors[1]])


@pytest.mark.parametrize(("kind", "other"), [("postgresql", "sparse"), ("qdrant", "sparse"), ("lancedb", "multi_vector")])
def test_a_table_of_other_vectors_is_not_changed(
    kind: str, other: str, request, cli, told, every: Path, tmp_path: Path
) -> None:
    store = of(kind, request, tmp_path)
    one, both = ["--column", "embedding"], ["--column", other, "--column", "embedding"]
    for first, second in ((one, both), (both, one)):
        cli("load", every, store.address, "--table", "kinds_other", *first)
        before = store.read("kinds_other")
        assert "choose another with --table" in told(
            "load", every, store.address, "--table", "kinds_other", *second, code=1
        )
        assert store.read("kinds_other") == before
        store.drop("kinds_other")


def test_the_layout_of_dense_collections_is_as_before(cli, made, tmp_path: Path) -> None:
    cli("load", made("both") / "out", f"qdrant:{tmp_path / 'points'}", "--table", "docs", "--column", "embedding")
    client = QdrantClient(path=str(tmp_path / "points"))
    params = client.get_collection("docs").config.params
    assert params.model_dump(exclude_none=True) == {
        "vectors": {
            "embedding": {
                "size": 256,
                "distance": models.Distance.COSINE,
                "hnsw_config": {"m": 0},  # the local mode, which has no index, does not change it afterwards
                "datatype": models.Datatype.FLOAT32,
            }
        }
    }
    client.close()
