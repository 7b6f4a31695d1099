"""``kosbert-ray export --format ndjson``: the bulk API's lines hold what the output does."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_server import parse
from conftest import TINY, everyday
from keyed_rows import write
from stores import store_of
from transformers import AutoTokenizer

from kosbert_ray import Output
from kosbert_ray.encoder.tokenizer import Tokenizer

SENTENCES = everyday()
BASE = ["--keep", "key", "--set", "slice.max_rows=20", "--set", "executor=local", "--set", "max_rejected=5", "--prune"]
MINI = ["--model", "bundled:kosbert-mini"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("말뭉치")
    write(folder, "a", [*SENTENCES[:30], None, *SENTENCES[30:40]])
    write(folder, "b", SENTENCES[40:50], 100)
    return folder


@pytest.fixture(scope="module")
def sparse(cli, splade: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "out"
    cli("embed", corpus, out, "--model", splade, *BASE)
    return out


def rows(out: Path) -> dict[int, dict[str, Any]]:
    """Rows of an output that have a vector, by key."""
    found = [row for shard in Output.open(out).shards() for row in pq.read_table(out / shard).to_pylist()]
    column = Output.open(out).formats[0].column
    return {row["key"]: row for row in found if row[column] is not None}


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """Documents of an export by id; no two files have the same."""
    parts = [parse(path.read_bytes()) for path in sorted(folder.glob("*.ndjson"))]
    found = {number: document for part in parts for number, document in part.items()}
    assert len(found) == sum(map(len, parts))
    return found


def same(found: Any, expected: Any) -> bool:
    """True if numbers are equal as float32."""
    return np.array_equal(np.array(found, np.float32), np.array(expected, np.float32))


def test_sparse_vectors_are_objects_of_tokens(cli, splade: Path, sparse: Path, tmp_path: Path) -> None:
    done = cli("export", sparse, tmp_path / "out", "--format", "ndjson")
    files = len([*(tmp_path / "out").glob("*.ndjson")])
    assert done.stdout == f"exported: 50 rows in {files} files to {tmp_path / 'out'}\n"
    assert files == len(Output.open(sparse).shards()) > 2
    assert "1 token has a dot, which OpenSearch takes as a key" in done.stderr
    tokenizer, truth = AutoTokenizer.from_pretrained(splade), rows(sparse)
    found = documents(tmp_path / "out")
    assert sorted(document["key"] for document in found.values()) == sorted(truth)
    dots = 0
    for document in found.values():
        row = truth[document["key"]]
        assert {*document} == {"key", "text", "sparse"}
        assert document["text"] == row["text"]
        assert [*document["sparse"]] == tokenizer.convert_ids_to_tokens(row["sparse"]["indices"])
        assert same([*document["sparse"].values()], row["sparse"]["values"])
        assert min(document["sparse"].values()) > 0
        dots += "." in document["sparse"]
    assert dots


def test_keys_may_be_token_ids(cli, sparse: Path, tmp_path: Path) -> None:
    assert not cli("export", sparse, tmp_path, "--format", "ndjson", "--token-ids").stderr
    truth = rows(sparse)
    for document in documents(tmp_path).values():
        vector = truth[document["key"]]["sparse"]
        assert [*document["sparse"]] == [*map(str, vector["indices"])]
        assert same([*document["sparse"].values()], vector["values"])


def test_ids_are_keys_where_tokens_cannot_be(
    cli, told, sparse: Path, splade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model is gone, and where two ids have the same token."""
    arguments = ["export", sparse, tmp_path / "a", "--format", "ndjson"]
    moved = splade.rename(splade.with_name("away"))
    done = cli(*arguments)
    moved.rename(splade)
    assert "keys of 'sparse' are token ids, not tokens: " in done.stderr
    assert all(key.isdecimal() for document in documents(tmp_path / "a").values() for key in document["sparse"])
    assert "holds another export" in told(*arguments, code=2)  # of tokens
    monkeypatch.setattr(Tokenizer, "tokens", property(lambda _: {0: "가", 1: "가"}))
    done = cli("export", sparse, tmp_path / "b", "--format", "ndjson")
    assert "some tokens of the model's vocabulary are the same" in done.stderr
    assert all(key.isdecimal() for document in documents(tmp_path / "b").values() for key in document["sparse"])


def test_weights_that_lucene_refuses_are_left_out(cli, sparse: Path, tmp_path: Path) -> None:
    """Rounded to 0 in half precision, or below the smallest normal float32."""
    shutil.copytree(sparse, tmp_path / "out")
    name = Output.open(sparse).shards()[0]
    table = pq.read_table(sparse / name)
    vectors = table["sparse"].to_pylist()
    vectors[0] = {"indices": [3, 5, 6, 8], "values": [0.0, 1e-40, 2**-126, 1.5]}
    vectors[1] = {"indices": [], "values": []}
    place = table.column_names.index("sparse")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(vectors, field.type)), tmp_path / "out" / name)
    cli("export", tmp_path / "out", tmp_path / "json", "--format", "ndjson", "--token-ids")
    found = {document["key"]: document["sparse"] for document in documents(tmp_path / "json").values()}
    first, second = table["key"].to_pylist()[:2]
    assert [*found[first]] == ["6", "8"] and same([*found[first].values()], [2**-126, 1.5])
    assert found[second] == {}


def test_dense_and_token_vectors_are_arrays(cli, corpus: Path, tmp_path: Path) -> None:
    kinds = ["--set", "output.vectors=dense,multi_vector", "--set", "output.dtype=float32,float16,int8,ubinary"]
    cli("embed", corpus, tmp_path / "out", *MINI, *BASE, *kinds, "--set", "on_bad_row=null_vector")
    cli("export", tmp_path / "out", tmp_path / "json", "--format", "ndjson")
    output, truth, found = Output.open(tmp_path / "out"), rows(tmp_path / "out"), documents(tmp_path / "json")
    assert len(found) == len(truth) == 50
    decoded = np.concatenate([next(output.vectors(shard, "embedding_int8"))[0] for shard in output.shards()])
    codes = dict(zip(truth, decoded, strict=True))
    for document in found.values():
        row = truth[document["key"]]
        assert same(document["embedding"], row["embedding"])
        assert same(document["embedding_float16"], row["embedding_float16"])
        assert same(document["embedding_int8"], codes[document["key"]])
        assert np.array(document["embedding_ubinary"], np.int8).view(np.uint8).tolist() == row["embedding_ubinary"]
        assert same(document["multi_vector"], row["multi_vector"])
    cli("export", tmp_path / "out", tmp_path / "one", "--format", "ndjson", "--column", "embedding")
    assert {field for document in documents(tmp_path / "one").values() for field in document} == {
        "key",
        "text",
        "embedding",
    }


def test_ids_are_those_of_a_load(cli, sparse: Path, tmp_path: Path) -> None:
    cli("export", sparse, tmp_path / "json", "--format", "ndjson", "--token-ids")
    store = store_of("qdrant", tmp_path / "store", lambda _: None)
    cli("load", sparse, store.address, "--table", "docs")
    loaded = {row["kosbert_id"]: row["key"] for row in store.read("docs")}
    assert loaded == {number: document["key"] for number, document in documents(tmp_path / "json").items()}


def test_kept_columns_are_fields(cli, tmp_path: Path) -> None:
    day, at = dt.date(2026, 11, 27), dt.datetime(2026, 11, 27, 1, 2, 3, 4, dt.UTC)
    values = {
        "b": (pa.array([True, None]), [True, None]),
        "n": (pa.array([2**53, -1], pa.int64()), [2**53, -1]),
        "x": (pa.array([float("nan"), 0.1]), [None, 0.1]),
        "list": (pa.array([[1.0, float("inf")], []]), [[1.0, None], []]),
        "nested": (pa.array([{"가": [{"나": 1}]}, None]), [{"가": [{"나": 1}]}, None]),
        "day": (pa.array([day, None]), [day.isoformat(), None]),
        "at": (pa.array([at, None], pa.timestamp("us", "UTC")), [at.isoformat(), None]),
        "dec": (pa.array([Decimal("12.50"), None]), ["12.50", None]),
        "raw": (pa.array([b"\x00\xff", None]), ["AP8=", None]),
        "따옴표 \"'\n": (pa.array(['줄\n바꿈 \u2028 "', "\\"]), ['줄\n바꿈 \u2028 "', "\\"]),
    }
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": SENTENCES[:2], **{name: column for name, (column, _) in values.items()}}), source)
    settings = json.dumps([*values], ensure_ascii=False)
    cli("embed", source, tmp_path / "out", "--model", TINY, "--set", f"input.keep={settings}")
    cli("export", tmp_path / "out", tmp_path / "json", "--format", "ndjson")
    found = [*documents(tmp_path / "json").values()]
    for name, (_, expected) in values.items():
        assert [document[name] for document in found] == expected, name


def test_a_later_export_writes_what_is_new_and_deletes_what_is_gone(
    cli, told, splade: Path, corpus: Path, sparse: Path, tmp_path: Path
) -> None:
    source, out, target = tmp_path / "in", tmp_path / "out", tmp_path / "json"
    shutil.copytree(corpus, source)
    cli("embed", source, out, "--model", splade, *BASE)
    cli("export", out, target, "--format", "ndjson")
    (target / "mapping.json").write_text("{}")
    times = {path.name: path.stat().st_mtime_ns for path in target.glob("*.ndjson")}
    write(source, "b", SENTENCES[60:75], 200)
    cli("embed", source, out, "--model", splade, *BASE)
    done = cli("export", out, target, "--format", "ndjson").stdout
    assert f"exported: 55 rows in {len(times)} files" in done and f"{len(times) - 1} files were already there" in done
    after = {path.name: path.stat().st_mtime_ns for path in target.glob("*.ndjson")}
    assert len({*times.items()} & {*after.items()}) == len(times) - 1 == len(after) - 1
    assert {document["key"] for document in documents(target).values()} == {*rows(out)}
    assert (target / "mapping.json").exists()
    assert json.loads((target / "export.json").read_text("utf-8"))["complete"] is True
    for other in (["--token-ids"], ["--column", "sparse", "--token-ids"]):
        assert "holds another export" in told("export", out, target, "--format", "ndjson", *other, code=2)
    assert "holds another export" in told("export", sparse, target, "--format", "ndjson", code=2)
    message = told("export", out, tmp_path / "x", "--format", "parquet", "--token-ids", code=2)
    assert message == "--token-ids: for --format ndjson only"
