"""``--reuse OUTPUT``: texts whose vectors an older output has are not encoded again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, command, everyday, wait_for

from kosbert_ray.run.older_vectors import PLACES, SHARDS_FILE

SENTENCES = everyday()
BASE = ["--model", TINY, "--set", "encoder.precision=fp32"]
OLD = SENTENCES[:120]
NEW = ["바뀐 문장이 하나 있습니다.", *OLD[1:], *SENTENCES[120:130]]


def fill(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": number, "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


def indexes() -> list[Path]:
    """Indexes on this machine."""
    return list(Path(tempfile.gettempdir()).glob(f"kosbert-ray-{os.getuid()}-reuse-*"))


def sums(out: Path) -> dict[str, int]:
    """Distinct texts that were encoded and reused, over all slices of a complete output."""
    table = pq.read_table(out / json.loads((out / "_SUCCESS").read_text())["manifest"])
    return {name: sum(table[name].to_pylist()) for name in ("distinct", "reused", "rows")}


def vectors(out: Path, column: str = "embedding") -> np.ndarray:
    table = ds.dataset(out, format="parquet").to_table()
    return np.array(table.sort_by("id")[column].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def older(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of ``OLD`` with ids and texts, in several shards."""
    folder = tmp_path_factory.mktemp("older")
    cli("embed", fill(folder / "in", OLD), folder / "out", *BASE, "--keep", "id", "--set", "slice.max_rows=50")
    return folder / "out"


@pytest.fixture(scope="module")
def fresh(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of ``NEW`` that reuses nothing."""
    folder = tmp_path_factory.mktemp("fresh")
    cli("embed", fill(folder / "in", NEW), folder / "out", *BASE, "--keep", "id")
    return folder / "out"


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_only_new_texts_are_encoded(cli, tmp_path: Path, older: Path, fresh: Path, executor: str) -> None:
    out, before = tmp_path / "새 벡터", {*indexes()}
    arguments = ["embed", fill(tmp_path / "in", NEW), out, *BASE, "--keep", "id", "--set", f"executor={executor}"]
    done = cli(*arguments, "--reuse", older)
    assert sums(out) == {"distinct": 11, "reused": 119, "rows": 130}
    assert "11 distinct texts encoded, 119 reused" in done.stderr
    assert np.abs(vectors(out) - vectors(fresh)).max() < 1e-5
    assert not (out / "_kosbert" / "reuse").exists()
    assert {*indexes()} <= before
    assert cli("verify", out, "--sample", "20").stdout


def test_an_output_can_reuse_its_own_vectors_of_a_changed_file(cli, tmp_path: Path, fresh: Path) -> None:
    arguments = ["embed", fill(tmp_path / "in", OLD), tmp_path / "out", *BASE, "--keep", "id"]
    cli(*arguments)
    fill(tmp_path / "in", NEW)
    cli(*arguments, "--reuse", tmp_path / "out")
    assert sums(tmp_path / "out") == {"distinct": 11, "reused": 119, "rows": 130}
    assert np.abs(vectors(tmp_path / "out") - vectors(fresh)).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        (["--set", "output.dtype=float16,int8,ubinary"], ["embedding", "embedding_int8", "embedding_ubinary"]),
        (["--set", "output.list_type=fixed_size_list", "--no-text"], ["embedding"]),
        (["--text", "{text}", "--keep", "id,text", "--set", "input.normalize=nfc"], ["embedding"]),
        (["--set", "on_bad_row=null_vector", "--set", "dedup=corpus"], ["embedding"]),
    ],
)
def test_another_schema_takes_the_same_vectors(
    cli, tmp_path: Path, older: Path, settings: list[str], columns: list[str]
) -> None:
    source = fill(tmp_path / "in", OLD)
    keep = [] if "--keep" in settings else ["--keep", "id"]
    cli("embed", source, tmp_path / "out", *BASE, *keep, *settings, "--reuse", older)
    assert sums(tmp_path / "out") == {"distinct": 0, "reused": len({*OLD}), "rows": len(OLD)}
    table = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert {*columns} <= {*table.column_names}
    close = 1e-3 if "float16" in settings[1] else 0
    assert np.abs(vectors(tmp_path / "out") - vectors(older)).max() <= close


def test_hashes_are_enough(cli, tmp_path: Path, fresh: Path) -> None:
    """Also for an output that keeps no text, and for one of bits, which have all of their vectors."""
    for number, dtype in enumerate(["float32", "ubinary"]):
        settings = [*BASE, "--keep", "id", "--no-text", "--set", f"output.dtype={dtype}"]
        older, out = tmp_path / f"older{number}", tmp_path / f"out{number}"
        cli("embed", fill(tmp_path / "in", OLD), older, *settings, "--set", "output.text_hash=true")
        table = ds.dataset(older, format="parquet").to_table()
        assert table.column_names == ["id", "text_hash", "embedding"]
        assert table["text_hash"].type == pa.binary(16)
        assert "문장" not in "".join(map(str, table["text_hash"].to_pylist()))
        cli("embed", fill(tmp_path / "in", NEW), out, *settings, "--reuse", older)
        assert sums(out) == {"distinct": 11, "reused": 119, "rows": 130}
        if dtype == "float32":
            assert np.abs(vectors(out) - vectors(fresh)).max() < 1e-5


@pytest.mark.parametrize("policy", ["mean", "chunk"])
@pytest.mark.parametrize("kept", [["--keep", "id"], ["--keep", "id,text"], ["--no-text", "--set", "output.text_hash=true"]])
def test_long_texts(cli, tmp_path: Path, policy: str, kept: list[str]) -> None:
    """Means are looked up as whole texts, chunks one by one."""
    long = [" ".join(SENTENCES[first : first + 12]) for first in range(0, 240, 12)]
    settings = [*BASE, *kept, "--set", f"long_text={policy}", "--set", "chunk.size=40", "--set", "chunk.overlap=0"]
    cli("embed", fill(tmp_path / "in", [*long, *OLD[:5]]), tmp_path / "older", *settings)
    changed = [f"{long[0]} {SENTENCES[300]}", *long[1:], *OLD[:5]]
    cli("embed", fill(tmp_path / "in", changed), tmp_path / "fresh", *settings)
    cli("embed", tmp_path / "in", tmp_path / "out", *settings, "--reuse", tmp_path / "older")
    found = sums(tmp_path / "out")
    assert found["rows"] == sums(tmp_path / "fresh")["rows"]
    assert found["reused"] >= 0.8 * found["rows"]
    assert 0 < found["distinct"] <= 0.2 * found["rows"] + 10
    tables = [ds.dataset(tmp_path / name, format="parquet").to_table() for name in ("out", "fresh")]
    assert tables[0].drop("embedding") == tables[1].drop("embedding")
    mine, theirs = (np.array(table["embedding"].to_pylist()) for table in tables)
    assert np.abs(mine - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--set", "model.max_seq_length=16"], "model.max_seq_length is"),
        (["--set", "model.prompt='문장: '"], "model.prompt is"),
        (["--set", "encoder.precision=bf16"], "encoder.precision is"),
        (["--model", "bundled:kosbert-mini"], "model.name is"),
    ],
)
def test_other_vectors_are_refused(cli, tmp_path: Path, older: Path, settings: list[str], words: str) -> None:
    done = cli("embed", fill(tmp_path / "in", NEW), tmp_path / "out", *BASE, *settings, "--reuse", older, code=1)
    assert f"reuse: {older} has other vectors: " in done.stderr
    assert words in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_output_that_cannot_be_reused_is_named(cli, tmp_path: Path, older: Path) -> None:
    source = fill(tmp_path / "in", OLD)
    cli("embed", source, tmp_path / "bare", *BASE, "--no-text", "--keep", "id")
    cli("embed", source, tmp_path / "bits", *BASE, "--set", "output.dtype=ubinary,int8")
    arguments = ["embed", source, tmp_path / "out", *BASE, "--reuse"]
    assert "bare has neither the texts (as strings) nor their hashes" in cli(*arguments, tmp_path / "bare", code=1).stderr
    assert "bits has ubinary and int8 vectors, from which float32" in cli(*arguments, tmp_path / "bits", code=1).stderr
    assert "not an output of kosbert-ray" in cli(*arguments, source, code=1).stderr
    assert "not an output of kosbert-ray" in cli(*arguments, tmp_path / "none", code=1).stderr
    assert "text_hash" in cli(*arguments, older, "--keep", "text_hash", "--set", "output.text_hash=true", code=2).stderr
    assert not (tmp_path / "out").exists()


def test_shards_that_are_gone_or_damaged_are_encoded_again(cli, tmp_path: Path, older: Path, fresh: Path) -> None:
    copy = tmp_path / "older"
    shutil.copytree(older, copy)
    first, second, *_ = sorted(copy.glob("*.parquet"))
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 0xFF
    second.write_bytes(content)
    first.unlink()
    cli("embed", fill(tmp_path / "in", NEW), tmp_path / "out", *BASE, "--keep", "id", "--reuse", copy)
    found = sums(tmp_path / "out")
    assert 0 < found["reused"] < 119
    assert found["distinct"] == 130 - found["reused"]
    assert np.abs(vectors(tmp_path / "out") - vectors(fresh)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("resumed", ["same command", "--resume"])
def test_a_killed_run_continues_with_its_index(cli, tmp_path: Path, older: Path, fresh: Path, resumed: str) -> None:
    out = tmp_path / "out"
    source = fill(tmp_path / "in", NEW)
    arguments = ["embed", source, out, *BASE, "--keep", "id", "--set", "slice.max_rows=5", "--reuse", older]
    process = subprocess.Popen(command(*arguments, "--set", "executor=ray"), stderr=subprocess.DEVNULL, env=os.environ)
    try:
        wait_for(lambda: list(out.glob("*.parquet")), 120, "no shard was committed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / SHARDS_FILE).exists()
    assert list((out / PLACES).glob("*.parquet"))
    done = cli("embed", "--resume", out) if resumed == "--resume" else cli(*arguments)
    assert "reuse: looking" not in done.stderr
    assert sums(out) == {"distinct": 11, "reused": 119, "rows": 130}
    assert np.abs(vectors(out) - vectors(fresh)).max() < 1e-5


def test_in_an_object_store(cli, s3, tmp_path: Path, older: Path, fresh: Path) -> None:
    files = s3.filesystem()
    files.mkdir("reuse")
    files.put(str(older), "reuse/older", recursive=True)
    files.put(str(fill(tmp_path / "in", NEW)), "reuse/in", recursive=True)
    cli("embed", "s3://reuse/in", "s3://reuse/out", *BASE, "--keep", "id", "--reuse", "s3://reuse/older", env=s3.env)
    table = ds.dataset("reuse/out", format="parquet", filesystem=files).to_table().sort_by("id")
    assert np.abs(np.array(table["embedding"].to_pylist()) - vectors(fresh)).max() < 1e-5
    assert not [path for path in files.find("reuse/out") if "/_kosbert/reuse" in path]


@pytest.mark.parametrize("text", ["price", "{name} {price}"])
def test_texts_that_are_kept_as_another_type_are_not_taken_for_those_that_were_embedded(
    cli, told, tmp_path: Path, text: str
) -> None:
    """1.50 is kept as 1.5, which another output may have as its text."""
    for name, prices in (("one", ("1.50", "2.0")), ("two", ("1.5", "2"))):
        (tmp_path / name).mkdir()
        rows = "".join(f"{number},사과,{price}\n" for number, price in enumerate(prices))
        (tmp_path / name / "a.csv").write_text(f"id,name,price\n{rows}")
    settings = [*BASE, "--text", text, "--keep", "id,name,price", "--no-text"]
    typed = ["--set", "input.types={price: float64}"]
    cli("embed", tmp_path / "one", tmp_path / "v1", *settings, *typed)
    refused = told("embed", tmp_path / "two", tmp_path / "v2", *settings, "--reuse", tmp_path / "v1", code=1)
    assert "has neither the texts (as strings) nor their hashes" in refused
    assert "not among its columns; give the input" in told("verify", tmp_path / "v1", "--sample", "2", code=1)
    assert cli("verify", tmp_path / "v1", "--sample", "2", "--input", tmp_path / "one").stdout.startswith("verified")
    cli("embed", tmp_path / "one", tmp_path / "v3", *settings, *typed, "--set", "output.text_hash=true")
    cli("embed", tmp_path / "two", tmp_path / "v4", *settings, "--reuse", tmp_path / "v3")
    assert sums(tmp_path / "v4") == {"distinct": 2, "reused": 0, "rows": 2}


@pytest.mark.parametrize(
    "settings",
    [["long_text=chunk", "chunk.size=40", "chunk.overlap=0"], ["output.dtype=ubinary"], ["output.dtype=float16"]],
)
def test_with_dedup_in_the_corpus(cli, tmp_path: Path, settings: list[str]) -> None:
    """The dedup's own job has whole texts and float32 vectors. Options that are not repeated come from job.json."""
    for number in range(3):
        fill(tmp_path / "in" / str(number), [*OLD[:30], *OLD[40 + number :: 5]])
    options = [part for setting in settings for part in ("--set", setting)]
    base = [*BASE, "--keep", "id", "--set", "slice.max_rows=20"]
    cli("embed", tmp_path / "in", tmp_path / "older", *base, *options)
    arguments = ["embed", tmp_path / "in", tmp_path / "out", *base, *options, "--set", "dedup=corpus"]
    cli(*arguments, "--limit", "10", "--reuse", tmp_path / "older")
    cli("embed", tmp_path / "in", tmp_path / "out", "--reuse", tmp_path / "older")
    found = sums(tmp_path / "out")
    assert found["distinct"] == 0 and found["reused"] > 0
    tables = [ds.dataset(tmp_path / name, format="parquet").to_table() for name in ("out", "older")]
    rows = [sorted(map(str, table.drop("embedding").to_pylist())) for table in tables]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("damage", ["cut", "remove", "flip"])
def test_a_damaged_index_is_made_again_or_named(cli, tmp_path: Path, older: Path, fresh: Path, damage: str) -> None:
    """The index of a run that was killed; kept here by a run that ends early."""
    arguments = ["embed", fill(tmp_path / "in", NEW), tmp_path / "out", *BASE, "--keep", "id", "--set", "slice.max_rows=40"]
    cli(*arguments, "--limit", "10", "--reuse", older)
    (place,) = (tmp_path / "out" / PLACES).glob("*.parquet")
    content = bytearray(place.read_bytes())
    if damage == "cut":
        place.write_bytes(content[:100])
    elif damage == "remove":
        place.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        place.write_bytes(content)
        done = cli(*arguments, "--reuse", older, code=1, process=True)  # this process has the index open
        assert "delete the folder _kosbert/reuse and run the same command again" in done.stderr
        shutil.rmtree(tmp_path / "out" / "_kosbert" / "reuse")
    cli(*arguments, "--reuse", older)
    assert sums(tmp_path / "out") == {"distinct": 11, "reused": 119, "rows": 130}
    assert np.abs(vectors(tmp_path / "out") - vectors(fresh)).max() < 1e-5


def test_the_index_goes_with_the_last_run_whatever_its_options(cli, told, tmp_path: Path, older: Path) -> None:
    arguments = ["embed", fill(tmp_path / "in", NEW), tmp_path / "out", *BASE, "--keep", "id", "--set", "slice.max_rows=40"]
    cli(*arguments, "--limit", "10", "--reuse", older)
    assert (tmp_path / "out" / SHARDS_FILE).exists()
    cli(*arguments)
    assert not (tmp_path / "out" / "_kosbert" / "reuse").exists()
    assert told(*arguments, "--reuse", Path(__file__), code=2).startswith("reuse: ")
