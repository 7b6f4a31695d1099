"""How far a job is, told from its output while it runs, after it was stopped, and when it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import TINY, command, everyday, wait_for


@pytest.mark.slow
def test_a_job_is_followed_from_elsewhere(cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    texts = [f"{text} {number}" for number in range(20) for text in everyday()]
    for number in range(4):
        (source / f"{number}.txt").write_text("\n".join(texts), "utf-8")
    embed = ["embed", source, out, "--model", TINY, "--set", "slice.max_rows=40"]
    job = subprocess.Popen(command(*embed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((out / "_kosbert" / "receipts").glob("*.parquet")), 60, "no receipts")
    running = json.loads(cli("status", out, "--json").stdout)
    assert (running["state"], running["holders"][0]["pid"]) == ("running", job.pid)
    assert 0 < running["share"] < 1
    assert running["totals"]["rows"] == running["run"]["rows"] == 40 * running["totals"]["slices"] > 0
    assert running["tokens_per_second"] > 0
    assert running["seconds_left"] > 0
    assert f"(process {job.pid})" in cli("status", out).stdout
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 130

    stopped = cli("status", out).stdout.splitlines()
    assert stopped[0].startswith(f"{out}: stopped, ")
    assert stopped[-1] == "no run is writing to it; run the same command again to resume"
    cli(*embed)
    done = json.loads(cli("status", out, "--json").stdout)
    assert (done["state"], done["share"]) == ("done", 1.0)
    assert done["totals"]["rows"] == 4 * 20 * 520
    os.rename(source, tmp_path / "gone")
    assert cli("status", out).stdout.splitlines()[0] == f"{out}: done, 100.0% of the input"


def test_what_is_no_output_has_no_status(told, tmp_path: Path) -> None:
    assert "not an output of kosbert-ray" in told("status", tmp_path, code=1)


@pytest.mark.slow
def test_an_output_without_its_input_is_told_as_far_as_it_goes(cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("가\n나\n")
    cli("embed", tmp_path / "a.txt", tmp_path / "out", "--model", TINY)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert cli("status", tmp_path / "out").stdout.startswith(f"{tmp_path / 'out'}: stopped\n")
    assert json.loads(cli("status", tmp_path / "out", "--json").stdout)["share"] is None
