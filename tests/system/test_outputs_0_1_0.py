"""Outputs written by 0.1.0: every later version resumes, verifies and searches them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import shards

from kosbert_ray.cli import main

PINNED = Path(__file__).parents[1] / "outputs_0_1_0"
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


def test_settings_that_are_not_repeated_come_from_job_json(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = shards(pinned / "whole")
    assert main(["embed", "in", "whole"]) == 0
    assert shards(pinned / "whole") == before
    told = "settings from whole/_kosbert/job.json: model.name=bundled:kosbert-mini, input.keep=id,text, slice.max_rows=8"
    assert told in capsys.readouterr().err.replace(f"{pinned}/", "")


def test_another_job_is_refused_with_the_option_to_change(pinned: Path, told: Callable[..., str]) -> None:
    line = told("embed", "in", "whole", *JOB, "--set", "encoder.precision=fp32", code=1)
    assert (
        "encoder.precision is auto in the output but fp32 in this job; add --set encoder.precision=auto, or choose another"
        in line
    )
    assert "model.truncate_dim is 256 in the output but 64 in this job" in told(
        "embed", "in", "whole", "--set", "model.truncate_dim=64", code=1
    )


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
    begun = set(shards(pinned / "half"))
    assert embed("half") == 0
    found = ds.dataset(pinned / "half", format="parquet").to_table(columns=["id", "text"])
    expected = ds.dataset(pinned / "whole", format="parquet").to_table(columns=["id", "text"])
    assert sorted(zip(*found.to_pydict().values(), strict=True)) == sorted(zip(*expected.to_pydict().values(), strict=True))
    assert main(["verify", "half", "--input", "in"]) == 0
    # The half-done fragment was done again as a whole, under today's cut.
    assert not begun & set(shards(pinned / "half"))
    # Killed in the middle of that: what the redo had committed stays.
    redone = shards(pinned / "half")
    shutil.copytree(PINNED / "half", pinned / "half", dirs_exist_ok=True)
    (pinned / "half" / "_SUCCESS").unlink()
    lost = [name for name in redone if name.startswith("a.") and "-00001." in name]
    for name in lost:
        (pinned / "half" / name).unlink()
    assert len(lost) == 1
    assert embed("half") == 0
    assert shards(pinned / "half").keys() == redone.keys()
    # Files that were hashed meanwhile may be touched.
    capsys.readouterr()
    os.utime(pinned / "in" / "a.jsonl", ns=(MTIME + 1, MTIME + 1))
    assert embed("half") == 0
    assert "1 file has a new modification time but the same content: unchanged" in capsys.readouterr().err
    assert shards(pinned / "half") == redone


@pytest.mark.parametrize("command", [("status",), ("ls",), ("report",), ("plan",)])
def test_reading_commands_take_it(pinned: Path, command: tuple[str, ...]) -> None:
    arguments = {"report": ["whole", "--to", "r.html"], "plan": ["in", "whole", *JOB]}.get(command[0], ["whole"])
    assert main([*command, *arguments]) == 0


def test_a_broken_pointer_is_named_and_replaced_by_promote(pinned: Path, told: Callable[..., str]) -> None:
    for content in (b"", b"null", b'{"output": ".."}', b"[" * 100_000, b"\xff"):
        (pinned / "_CURRENT").write_bytes(content)
        assert "_CURRENT: names no output" in told("status", pinned, code=1)
        assert main(["promote", "whole"]) == 0
        assert main(["status", str(pinned)]) == 0


def test_a_plan_takes_the_settings_of_the_output(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "in", "whole"]) == 0
    lines = capsys.readouterr().out
    assert " 6 shards" in lines
    assert "6 slices are committed; 0 new files, 0 changed" in lines


def test_a_lost_job_file_is_restored_by_its_own_job_only(
    pinned: Path, told: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = shards(pinned / "whole")
    (pinned / "whole/_kosbert/job.json").unlink()
    for more in ((), ("--dry-run",)):
        line = told("embed", "in", "whole", *JOB, "--set", "model.truncate_dim=64", *more, code=1)
        assert "a.00000-00000.b82d5eac.parquet belongs to a different job than this command describes" in line
    assert embed("whole", "--dry-run") == 0
    assert "6 slices are committed already" in capsys.readouterr().out
    assert embed("whole") == 0
    assert shards(pinned / "whole") == before
    assert main(["verify", "whole", "--input", "in"]) == 0


def test_a_later_and_lower_limit_of_rejected_rows_changes_nothing_but_the_exit_code(
    pinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (pinned / "rejected").rglob("*") if path.is_file()}
    assert main(["embed", "rejecting", "rejected"]) == 3
    assert "the output was completed with another limit" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (pinned / "rejected").rglob("*") if path.is_file()} == before


def test_a_manifest_of_another_output_is_written_again(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (theirs,) = (pinned / "rejected/_kosbert/manifests").iterdir()
    (ours,) = (pinned / "whole/_kosbert/manifests").iterdir()
    shutil.copy(theirs, ours)
    before = shards(pinned / "whole")
    assert embed("whole") == 0
    assert shards(pinned / "whole") == before
    capsys.readouterr()
    assert main(["ls", "whole"]) == 0
    assert capsys.readouterr().out.split() == sorted(before)
    assert main(["verify", "whole"]) == 0


def test_the_next_output_keeps_the_model_unless_another_is_named(
    pinned: Path, capsys: pytest.CaptureFixture[str], told: Callable[..., str]
) -> None:
    assert main(["promote", "./whole"]) == 0
    assert main(["embed", "--into", "./v2", "--set", "model.truncate_dim=64", "--dry-run"]) == 0
    assert "to embed: 2 new files" in capsys.readouterr().out
    assert "no such model folder" in told("embed", "--into", "./v2", "--model", "./nothing", "--dry-run", code=1)
