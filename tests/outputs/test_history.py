"""A corpus that grows from day to day: what a run would do, what it did, and what a reader has to take of it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from conftest import TINY, everyday

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "text"]


def put(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")


def test_days_of_a_growing_corpus(cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for day in range(3):
        put(source / f"day-{day}.jsonl", SENTENCES[day * 50 : day * 50 + 50])
    embed = ["embed", source, out, *SETTINGS]
    said = cli(*embed, "--dry-run").stdout.splitlines()
    assert "3 files in the input, 0 slices are committed already" in said[0]
    assert said[1].startswith("to embed: 3 new files (")
    assert not out.exists()
    cli(*embed)
    (first,) = [line.split()[0] for line in cli("ls", out, "--runs").stdout.splitlines()[1:]]
    shards = cli("ls", out).stdout.splitlines()
    assert sorted(shards) == sorted(path.name for path in out.glob("*.parquet"))

    put(source / "day-3.jsonl", SENTENCES[150:200])
    put(source / "day-1.jsonl", SENTENCES[200:240])
    (source / "day-0.jsonl").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    said = cli(*embed, "--prune", "--dry-run").stdout.splitlines()
    assert "3 files in the input, 1 slice is committed already" in said[0]
    assert "1 new file (" in said[1] and "1 changed, 0 partly committed" in said[1]
    assert said[2] == "to delete: 2 shards; 0 shards of removed files would be kept"
    assert said[3].startswith("changed day-1.jsonl: its size changed from ")
    assert sorted(line.rpartition("(of ")[2] for line in said[4:]) == ["day-0.jsonl)", "day-1.jsonl)"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before

    cli(*embed, "--prune")
    new = cli("ls", out, "--since", first).stdout.splitlines()
    texts = [text for name in new for text in pq.read_table(out / name)["text"].to_pylist()]
    assert sorted(texts) == sorted(SENTENCES[150:200] + SENTENCES[200:240])
    changes = [json.loads(line) for line in cli("ls", out, "--since", first, "--format", "jsonl").stdout.splitlines()]
    gone = {change["shard"] for change in changes if change["change"] == "removed"}
    assert gone == set(shards) - {path.name for path in out.glob("*.parquet")}
    assert len(gone) == 2
    assert ds.dataset(out, format="parquet").count_rows() == 140
    runs = cli("ls", out, "--runs").stdout.splitlines()
    assert len(runs) == 3 and runs[2].split()[1:] == ["3", "140"]
    table = cli("ls", out, "--since", first, "--format", "table").stdout
    assert table.count("added") == 2 and table.count("removed") == 2


def test_what_cannot_be_listed_is_told(told, tmp_path: Path) -> None:
    assert "not an output of kosbert-ray" in told("ls", tmp_path, code=1)
