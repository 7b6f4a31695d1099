"""``kosbert-ray index``: search finds the rows that comparing every row finds, also after later runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday

from kosbert_ray import Output

SENTENCES = everyday()
BASE = ["--model", TINY, "--set", "slice.max_rows=60", "--set", "encoder.precision=fp32"]
QUERIES = [SENTENCES[3], SENTENCES[77], "비가 오는 날에는 무엇을 먹을까?"]


def write(folder: Path, name: str, texts: list[str | None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / f"{name}.parquet")


def record(out: Path) -> dict:
    return json.loads((out / "_index" / "index.json").read_text())


def require_like_exact(out: Path, score: float = 0.01) -> None:
    """The first rows by the index are among those of exact search, with nearly their scores."""
    output = Output.open(out, encoder={"precision": "fp32"})
    for query in QUERIES:
        found, exact = (output.search(query, 5, exact=flag) for flag in (False, True))
        assert {hit.columns["text"] for hit in found[:3]} <= {hit.columns["text"] for hit in exact}
        scores = {hit.columns["text"]: hit.score for hit in exact}
        assert scores[found[0].columns["text"]] > exact[0].score - score  # nearly as good as the best
        assert abs(found[0].score - exact[0].score) < score
        shards = {*output.shards()}
        assert all(hit.shard in shards and hit.rank == rank for rank, hit in enumerate(found, 1))


@pytest.fixture(scope="module")
def made(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    for number in range(8):
        write(folder / "in", f"{number}", SENTENCES[60 * number : 60 * number + 60])
    cli("embed", folder / "in", folder / "out", *BASE, "--prune")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "색인")
    return tmp_path / "색인"


@pytest.mark.parametrize(("memory", "kind"), [("16GB", "SQ8"), ("40K", "RaBitQ4")])
def test_search_by_the_index_finds_what_exact_search_finds(cli, folder: Path, memory: str, kind: str) -> None:
    out = folder / "out"
    done = cli("index", out, "--memory", memory, "--recall", "1")
    assert done.stdout.startswith("indexed: 480 rows (480 added) in ")
    assert f": {kind}, " in done.stdout
    assert done.stdout.count("\n") == 1
    assert record(out)["recall"] >= 0.95
    require_like_exact(out, 0.01 if kind == "SQ8" else 0.001)
    (hit, *_) = json.loads("[" + cli("search", out, SENTENCES[7], "-k", "1", "--json").stdout + "]")
    assert hit["text"] == SENTENCES[7]
    assert len(cli("search", out, SENTENCES[7], "-k", str(10**20), "--json").stdout.splitlines()) == 480
    assert cli("verify", out).stdout.startswith("verified")
    assert cli("index", out, "--memory", memory, "--recall", "1").stdout.startswith("indexed: 480 rows (0 added) in ")


def test_an_output_of_one_row(cli, tmp_path: Path) -> None:
    write(tmp_path / "in", "a", SENTENCES[:1])
    cli("embed", tmp_path / "in", tmp_path / "out", *BASE)
    assert cli("index", tmp_path / "out").stdout.startswith("indexed: 1 row (1 added)")
    assert SENTENCES[0] in cli("search", tmp_path / "out", SENTENCES[0]).stdout


def test_later_runs_add_segments_and_mask_what_is_gone(cli, folder: Path) -> None:
    out = folder / "out"
    cli("index", out, "--recall", "1")
    (folder / "in" / "0.parquet").unlink()
    write(folder / "in", "8", SENTENCES[480:520])
    cli("embed", folder / "in", out, *BASE, "--prune")
    stale = cli("search", out, SENTENCES[3], "-k", "3")
    assert "is of an earlier run; comparing every row (run kosbert-ray index)" in stale.stderr
    assert SENTENCES[3] not in stale.stdout
    done = cli("index", out, "--recall", "1")
    assert done.stdout.startswith("indexed: 460 rows (40 added, 60 of earlier runs masked) in ")
    assert len(record(out)["segments"]) == 2
    require_like_exact(out)
    texts = {hit.columns["text"] for hit in Output.open(out).search(SENTENCES[:5], 10)}
    assert texts and not texts & {*SENTENCES[:60]} - {*SENTENCES[60:]}
    (folder / "in" / "1.parquet").unlink()
    cli("embed", folder / "in", out, *BASE, "--prune")
    assert cli("index", out, "--recall", "1").stdout.startswith("indexed: 400 rows (400 added) in ")
    assert len(record(out)["segments"]) == 1
    assert len(list((out / "_index").iterdir())) == 4, "files of the index before are gone"
    require_like_exact(out)


def test_rows_without_a_vector_and_chunks(cli, tmp_path: Path) -> None:
    write(tmp_path / "in", "a", [None, *SENTENCES[:100], "", *SENTENCES[100:200]])
    for name, settings in (("null", ["on_bad_row=null_vector"]), ("chunk", ["long_text=chunk", "chunk.size=12"])):
        options = [part for setting in settings for part in ("--set", setting)]
        out = tmp_path / name
        cli("embed", tmp_path / "in", out, *BASE, *options, "--set", "max_rejected=9")
        cli("index", out, "--recall", "1")
        if name == "null":
            require_like_exact(out)
        else:
            assert record(out)["segments"][0]["rows"] == Output.open(out).totals.rows > 200


def test_a_damaged_index_is_named_and_built_again(cli, told, folder: Path) -> None:
    out = folder / "out"
    cli("index", out, "--recall", "1")
    (data,) = (out / "_index").glob("*.ivfdata")
    data.write_bytes(data.read_bytes()[:-5])
    message = told("search", out, SENTENCES[3], code=1)
    assert f"{data}: missing or cut off; run kosbert-ray index --rebuild" in message
    assert cli("search", out, SENTENCES[3], "--exact").stdout
    cli("index", out, "--recall", "1", "--rebuild")
    require_like_exact(out)
    (out / "_index" / "index.json").write_text("{")
    assert "cannot be read" in told("search", out, SENTENCES[3], code=1)
    cli("index", out, "--recall", "1", "--rebuild")
    require_like_exact(out)


def test_what_cannot_be_indexed_is_said(told, folder: Path) -> None:
    out = folder / "out"
    assert "--recall: 2 is not between 0 and 1" in told("index", out, "--recall", "2", code=2)
    assert "--memory: 'much' is no size" in told("index", out, "--memory", "much", code=2)
    assert "no column of vectors 'none'" in told("index", out, "--column", "none", code=1)
    (out / "_SUCCESS").unlink()
    assert "not complete" in told("index", out, code=1)


def test_in_an_object_store(cli, s3, folder: Path) -> None:
    files = s3.filesystem()
    files.mkdir("index")
    files.put(str(folder / "out"), "index/out", recursive=True)
    cli("index", "s3://index/out", env=s3.env)
    done = cli("search", "s3://index/out", SENTENCES[7], "-k", "1", env=s3.env)
    assert "copying s3://index/out/_index" in done.stderr
    assert SENTENCES[7] in done.stdout
    assert "copying" not in cli("search", "s3://index/out", SENTENCES[7], "-k", "1", env=s3.env).stderr
    (copy,) = re.findall(r"to (/\S+)", done.stderr)
    shutil.rmtree(copy)


def test_a_recall_or_a_memory_that_cannot_be_reached_is_told(cli, told, folder: Path) -> None:
    done = cli("index", folder / "out", "--memory", "40K", "--recall", "1.0", "--rebuild")
    if "recall@10 1.000" not in done.stdout:
        assert "the codes do not tell nearer rows apart; use search --exact" in done.stderr
    message = told("index", folder / "out", "--memory", "1K", code=2)
    assert message.startswith("--memory: the smallest codes of 480 rows take 30.7 kB")
