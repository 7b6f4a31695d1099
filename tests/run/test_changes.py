"""Inputs that change between runs and during one: the output is that of what is there in the end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest
from conftest import TINY, alive, command, everyday, leftovers, wait_for

SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "text", "--set", "slice.max_rows=100", "--set", "encoder.actors=1"]


def put(path: Path, texts: list[str]) -> list[str]:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    partial.rename(path)
    return texts


def many(mark: str, rows: int) -> list[str]:
    return [f"{SENTENCES[number % 520]} {mark} {number}" for number in range(rows)]


@pytest.mark.faults
def test_files_changed_removed_and_added_during_a_run(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    expected = put(source / "a.jsonl", many("처음", 3000))
    put(source / "b.jsonl", many("바뀔 것", 1500))
    put(source / "c.jsonl", many("없어질 것", 1500))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command("embed", source, target, *SETTINGS), stderr=log)
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: len(list(target.glob("*.parquet"))) >= 3, 120, "no shard was committed")
        family = psutil.Process(process.pid).children(recursive=True)
        expected += put(source / "b.jsonl", many("바뀐 것", 700))
        (source / "c.jsonl").unlink()
        assert process.wait(200) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        for child in alive(family):
            child.kill()
    said = (tmp_path / "log").read_text()
    assert " during the run (2 files in all); planning again" in said
    kept = set(many("없어질 것", 1500))
    found = ds.dataset(target, format="parquet").to_table()["text"].to_pylist()
    assert sorted(text for text in found if text not in kept) == sorted(expected)
    assert leftovers(target) == []
    assert "verified" in cli("verify", target, "--input", source).stdout

    expected += put(source / "d.jsonl", many("더해진 것", 50))
    cli("embed", source, target, *SETTINGS, "--set", "output.removed_inputs=delete")
    found = ds.dataset(target, format="parquet").to_table()["text"].to_pylist()
    assert sorted(found) == sorted(expected)


@pytest.mark.faults
def test_shards_of_a_removed_file_stay_unless_they_are_to_go(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    put(source / "a.jsonl", SENTENCES[:20])
    put(source / "b.jsonl", SENTENCES[20:40])
    cli("embed", source, target, *SETTINGS)
    (source / "b.jsonl").unlink()
    put(source / "c.jsonl", SENTENCES[40:50])
    done = cli("embed", source, target, *SETTINGS)
    assert "1 file was removed from the input (the first: b.jsonl); keeping 1 shard of them" in done.stderr
    assert ds.dataset(target, format="parquet").count_rows() == 50
    assert "verified" in cli("verify", target, "--input", source).stdout
    done = cli("embed", source, target, *SETTINGS, "--set", "output.removed_inputs=delete")
    assert "deleted 1 shard of removed inputs" in done.stderr
    assert ds.dataset(target, format="parquet").count_rows() == 30
    assert "verified" in cli("verify", target, "--input", source).stdout
