"""Outputs written by 0.1.0: every later version resumes, verifies and searches them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import shards

from kosbert_ray.cli import main

PINNED = Path(__file__).parent / "outputs_0_1_0"
MTIME = 1764000000123456789  # of every input file when the outputs were made
JOB = ["--model", "bundled:kosbert-mini", "--keep", "id,text", "--set", "slice.max_rows=8"]
# Output: its input, and what its command said besides JOB.
WHOLE = {
    "whole": ("in", ()),
    "rejected": ("rejecting", ("max_rejected=5",)),
    "chunk": ("long", ("long_text=chunk", "chunk.size=64", "chunk.text=true")),
    "int8": ("in", ("output.dtype=int8,ubinary", "encoder.engine=openvino", "encoder.precision=int8")),
    "dedup": ("in", ("dedup=corpus",)),
}


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None) -> Path:
    """A copy of the pinned folder, as it was when 0.1.0 had made it, and the current directory."""
    folder = tmp_path / "한글 폴더"  # no user's path may matter
    shutil.copytree(PINNED, folder)
    for name in ("in", "rejecting", "long"):
        for path in (folder / name).iterdir():
            os.utime(path, ns=(MTIME, MTIME))
    monkeypatch.chdir(folder)
    return folder


def embed(output: str, *more: str) -> int:
    """Runs the command that made an output, in this process."""
    source, settings = WHOLE.get(output, ("in", ()))
    return main(["embed", source, output, *JOB, *(part for setting in settings for part in ("--set", setting)), *more])


@pytest.mark.parametrize("output", WHOLE)
def test_the_same_command_again_does_nothing(pinned: Path, output: str) -> None:
    before = shards(pinned / output)
    success = (pinned / output / "_SUCCESS").read_bytes()
    assert embed(output) == 0
    assert shards(pinned / output) == before
    assert (pinned / output / "_SUCCESS").read_bytes() == success


@pytest.mark.parametrize("output", WHOLE)
def test_verify_and_search_pass(pinned: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", output, "--input", WHOLE[output][0]]) == 0
    assert "verified" in capsys.readouterr().out
    text = "등산" if output == "chunk" else (pinned / WHOLE[output][0] / "a.jsonl").read_text("utf-8").split('"')[5]
    assert main(["search", output, text, "--top-k", "3", "--format", "jsonl"]) == 0
    hits = capsys.readouterr().out.splitlines()
    assert len(hits) == 3
    if output != "chunk":
        assert text in hits[0]


def test_a_killed_run_is_resumed_with_every_row_once(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed("half") == 0
    found = ds.dataset(pinned / "half", format="parquet").to_table(columns=["id", "text"])
    expected = ds.dataset(pinned / "whole", format="parquet").to_table(columns=["id", "text"])
    assert sorted(zip(*found.to_pydict().values(), strict=True)) == sorted(zip(*expected.to_pydict().values(), strict=True))
    assert main(["verify", "half", "--input", "in"]) == 0


@pytest.mark.parametrize("command", [("status",), ("ls",), ("report",), ("plan",)])
def test_reading_commands_take_it(pinned: Path, command: tuple[str, ...]) -> None:
    arguments = {"report": ["whole", "--to", "r.html"], "plan": ["in", "whole", *JOB]}.get(command[0], ["whole"])
    assert main([*command, *arguments]) == 0
