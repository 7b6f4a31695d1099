"""A run that makes no headway says what it is waiting for."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import TINY, alive, command, everyday, wait_for

from kosbert_ray.run.monitor.board import Doing, View
from kosbert_ray.run.monitor.watchdog import describe

RESOURCES = "1 requested, each with 1 GPU"


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (None, "the cluster does not answer"),
        (View(), f"resources for the encoders were never granted: {RESOURCES}"),
        (View(encoders_starting=2), "waiting for 2 encoders to load the model"),
        (
            View(encoders_ready=1),
            f"no worker is busy: Ray has not started the next task, or its process hangs ({RESOURCES})",
        ),
        (
            View((Doing("encode", "a.jsonl, slice 0-3", "n1", 61), Doing("encode", "b", "n2", 5)), 0, 2),
            "waiting for an encoder: a.jsonl, slice 0-3 on n1 for 1 min 1 s (and 1 more)",
        ),
        (
            View((Doing("read", "a", "n1", 9),), 0, 2, {"s3://b/a: 503; retrying": 4.0, "old": 100.0}),
            "waiting for input: a on n1 for 9 s; s3://b/a: 503; retrying",
        ),
        (View((Doing("write", "a", "n1", 9), Doing("tokenize", "b", "n", 3)), 0, 1), "waiting for output: a on n1 for 9 s"),
    ],
)
def test_what_everything_waits_for_is_told_in_a_line(view: View | None, line: str) -> None:
    assert line in describe(view, RESOURCES)


@pytest.mark.faults
def test_an_encoder_that_hangs_is_named_with_its_slice_and_the_run_goes_on_when_it_does(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(20) for text in everyday()]
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines), "utf-8")
    settings = ["--model", TINY, "--set", "slice.max_rows=200", "--set", "encoder.actors=1", "--set", "executor=ray"]
    arguments = command("embed", tmp_path / "in", tmp_path / "out", *settings, "--set", "stall_timeout=2")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(arguments, stderr=log)
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("*.parquet"))) >= 3, 120, "no shard was committed")
        family = psutil.Process(process.pid).children(recursive=True)
        (encoder,) = [child for child in family if "EncodeSlices" in " ".join(child.cmdline())]

        def caught_at_work() -> bool:
            """Stops the encoder; between two slices it is at nothing that could be told, and is let go again."""
            encoder.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline and not said():
                time.sleep(0.2)
            encoder.send_signal(signal.SIGCONT)
            return said()

        def said() -> bool:
            return "waiting for an encoder: " in (tmp_path / "log").read_text()

        wait_for(caught_at_work, 60, "nothing was said")
        assert process.wait(120) == 0
    finally:
        process.kill()
        for child in alive(family):
            child.kill()
    said = [line for line in (tmp_path / "log").read_text().splitlines() if "nothing was committed for" in line]
    assert any("waiting for an encoder: " in line and "a.jsonl, slice 0-" in line for line in said), said
