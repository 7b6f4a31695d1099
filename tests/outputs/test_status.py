"""How far a job is, told from its output while it runs, after it was stopped, and when it is done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, command, everyday, wait_for

from kosbert_ray import Output
from kosbert_ray.cli import main
from kosbert_ray.outputs.status import _rate, status
from kosbert_ray.shards.lease import Lease, LiveReport
from kosbert_ray.storage import Storage

PINNED = Path(__file__).parents[1] / "outputs_0_1_0"


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
    running = json.loads(cli("status", out, "--json", code=4).stdout)
    assert (running["state"], running["holders"][0]["pid"]) == ("running", job.pid)
    assert 0 < running["share"] < 1
    # Slices without a receipt yet are known from their shards only, and so of no run.
    assert 0 < running["run"]["rows"] <= running["totals"]["rows"] == 40 * running["totals"]["slices"]
    assert running["tokens_per_second"] > 0
    assert running["seconds_left"] > 0
    assert f"(process {job.pid})" in cli("status", out, code=4).stdout
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 130

    stopped = cli("status", out, code=5).stdout.splitlines()
    assert stopped[0].startswith(f"{out}: stopped, ")
    assert stopped[-1].endswith("; run the same command (without --limit) or kosbert-ray embed --resume OUTPUT")
    cli(*embed)
    done = json.loads(cli("status", out, "--json").stdout)
    assert (done["state"], done["share"]) == ("done", 1.0)
    assert done["totals"]["rows"] == 4 * 20 * 520
    os.rename(source, tmp_path / "gone")
    assert cli("status", out).stdout.splitlines()[0] == f"{out}: done, 100.0% of the input"


def test_it_shows_what_the_run_shows_and_waits_for_its_end(
    cli, tmp_path: Path, own_signals: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(PINNED / "whole", tmp_path / "out"))
    lease = Lease(Storage(str(out)), "run-1")
    lease.report = lambda: LiveReport(0.25, 7, 3.5, 70.0, 120.0, "encoders 100% busy: the hardware's limit")
    ends = iter([lambda: None, lambda: lease.__exit__()])
    monkeypatch.setattr("kosbert_ray.cli.status.time", SimpleNamespace(sleep=lambda _: next(ends)()))
    with lease:
        found = json.loads(cli("status", out, "--json", code=4).stdout)
        assert (found["share"], found["tokens_per_second"], found["seconds_left"]) == (0.25, 70.0, 120.0)
        assert found["doing"].startswith("encoders 100% busy")
        shown = cli("status", out, code=4).stdout
        assert "running, 25.0% of the input" in shown and "70 tokens/s, 2 min 0 s left" in shown
        done = cli("status", out, "--wait")
    waiting = "running: 42 rows, 25.0% of the input, 70 tokens/s, 2 min 0 s left; encoders 100% busy"
    assert sum(waiting in line for line in done.stderr.splitlines()) == 2
    assert done.stdout.splitlines()[0].startswith(f"{out}: done")
    # What another version wrote is no reason to fail.
    (out / "_kosbert" / "leases").mkdir(exist_ok=True)
    for live in ("x", {"share": 1}, {**asdict(lease.report()), "rows": "many"}):
        holder = {"run": "r", "host": socket.gethostname(), "pid": os.getpid(), "started": 0, "heartbeat": 0, "live": live}
        (out / "_kosbert" / "leases" / "r.json").write_text(json.dumps(holder))
        assert status(Output.open(out)).holders[0].live is None


def test_a_finished_run_has_its_date_duration_and_rate(cli, tmp_path: Path) -> None:
    cli("embed", "bundled:everyday", tmp_path / "out", "--model", TINY)
    (line,) = [line for line in cli("status", tmp_path / "out").stdout.splitlines() if line.startswith("finished ")]
    assert re.fullmatch(r"finished \d{4}-\d\d-\d\d \d\d:\d\d \w+ after \d+ s: 520 rows, [\d,]+ rows/s", line)


def test_what_is_no_output_has_no_status(told, tmp_path: Path) -> None:
    assert "not an output of kosbert-ray" in told("status", tmp_path, code=1)


@pytest.mark.slow
def test_an_output_without_its_input_is_told_as_far_as_it_goes(cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("가\n나\n")
    cli("embed", tmp_path / "a.txt", tmp_path / "out", "--model", TINY)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert cli("status", tmp_path / "out", code=5).stdout.startswith(f"{tmp_path / 'out'}: stopped\n")
    assert json.loads(cli("status", tmp_path / "out", "--json", code=5).stdout)["share"] is None


def test_files_that_failed_are_named_as_the_reason_it_stopped(
    tmp_path: Path, own_signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(PINNED / "whole", tmp_path / "out"))
    (out / "_SUCCESS").unlink()
    runs = out / "_kosbert" / "runs"
    runs.mkdir()
    (runs / "20260101T000000-00000000.json").write_text("{}")
    (runs / "20260102T000000-00000000.json").write_text('{"failed_files": 2}')
    assert main(["status", str(out)]) == 5
    assert capsys.readouterr().out.splitlines()[-1].startswith("the last run failed on 2 input files and committed all")
    (runs / "20260102T000000-00000000.json").write_text("{")
    assert status(Output.open(out)).failed_files == 0


def test_the_rate_leaves_out_the_start_of_a_run() -> None:
    some = Output.open(PINNED / "whole").receipts[0]
    receipts = [replace(some, tokens=100, finished_at=1000.0 + 5 * n, encode_seconds=4, write_seconds=1) for n in range(4)]
    assert _rate(receipts, age=300) == 400 / 20
    assert _rate([replace(some, tokens=100, finished_at=0.0)], age=50) == 2
    assert _rate([], age=50) is None
