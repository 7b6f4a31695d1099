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
    out = tmp_path / "새 벡터"
    arguments = ["embed", fill(tmp_path / "in", NEW), out, *BASE, "--keep", "id", "--set", f"executor={executor}"]
    done = cli(*arguments, "--reuse", older)
    assert sums(out) == {"distinct": 11, "reused": 119, "rows": 130}
    assert "11 distinct texts encoded, 119 reused" in done.stderr
    assert np.abs(vectors(out) - vectors(fresh)).max() < 1e-5
    assert not (out / "_kosbert" / "reuse").exists()
    assert not list(Path(tempfile.gettempdir()).glob(f"kosbert-ray-{os.getuid()}-reuse-*"))
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
    assert "bare has neither the texts nor their hashes" in cli(*arguments, tmp_path / "bare", code=1).stderr
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
