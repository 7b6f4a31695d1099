"""``embed --resume`` repeats the last run's command from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, shards


@pytest.fixture
def trial(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trial that was made in a folder with relative paths of its input and its model."""
    home = tmp_path / "처음"
    (home / "corpus").mkdir(parents=True)
    (home / "corpus" / "a.jsonl").write_text("".join(json.dumps({"body": f"문장 {n}"}) + "\n" for n in range(6)), "utf-8")
    shutil.copytree(TINY, home / "model")
    monkeypatch.chdir(home)
    options = ["--model", "./model", "--text", "body", "--set", "slice.max_rows=2", "--set", "max_rejected=5"]
    cli("embed", "corpus/*.jsonl", "out", *options, "--limit", "2")
    return home / "out"


def test_the_same_files_are_embedded_from_another_folder(
    cli, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "corpus").mkdir(parents=True)
    (elsewhere / "corpus" / "b.jsonl").write_text('{"body": "other"}\n', "utf-8")
    monkeypatch.chdir(elsewhere)
    shown = cli("embed", "--resume", "../처음/out", "--prune", "--dry-run").stdout
    assert "to delete: 0 shards" in shown
    done = cli("embed", "--resume", "../처음/out", "--prune")
    assert done.stdout.startswith("done: 6 rows in 3 shards")
    assert f"resuming ../처음/out: input {trial.parent}/corpus/*.jsonl" in done.stderr
    before = shards(trial)
    assert cli("embed", "--resume", trial).stdout.startswith("done: 6 rows")
    assert shards(trial) == before
    recorded = json.loads(sorted((trial / "_kosbert" / "runs").iterdir())[-1].read_text("utf-8"))
    assert recorded["said"]["max_rejected"] == 5


def test_what_cannot_be_resumed_is_refused(cli, trial: Path, tmp_path: Path) -> None:
    assert "leave out INPUT, OUTPUT and --into" in cli("embed", "corpus", "--resume", trial, code=2).stderr
    assert "no run of kosbert-ray is recorded here" in cli("embed", "--resume", tmp_path / "nothing", code=1).stderr
    for path in (trial / "_kosbert" / "runs").iterdir():  # as version 0.1.0 wrote them
        record = json.loads(path.read_text("utf-8"))
        del record["input_path"], record["model_path"]
        path.write_text(json.dumps(record), "utf-8")
    assert "recorded its input as 'corpus/*.jsonl'" in cli("embed", "--resume", trial, code=1).stderr
    record["said"]["input"]["path"] = "./corpus/"
    path.write_text(json.dumps(record), "utf-8")
    assert cli("embed", "--resume", trial, "--dry-run").stdout.startswith(f"{trial}: 1 file in the input")
