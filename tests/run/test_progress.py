"""What a person sees: counts, rates, the time left."""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, wait_for
from nbclient import NotebookClient
from receipts import RECEIPT
from rich.console import Console

from kosbert_ray.run.monitor.board import BoardState, Doing, Part, View
from kosbert_ray.run.monitor.progress import LOG_SECONDS, Progress
from kosbert_ray.run.monitor.throughput import STEADY_LOOKS, Recent
from kosbert_ray.shards.totals import Totals
from kosbert_ray.units import duration


def test_the_line_counts_what_is_done_and_tells_the_time_left_from_the_bytes_read() -> None:
    now = 100.0
    progress = Progress(400, Totals(slices=1, input_bytes=100, tokens=700), Console(file=io.StringIO()), clock=lambda: now)
    assert "1 slice · 25.0%" in progress.line()
    assert "starting" in progress.line()
    now = 110.0
    progress.add(replace(RECEIPT, input_bytes=100, rows=50, tokens=700, rejected=0, encode_seconds=99))
    assert progress.line() == "2 slices · 50.0% · 5 rows/s · 70 tokens/s · 20 s left"
    progress.add(replace(RECEIPT, input_bytes=200, rejected=3))
    assert progress.line().endswith("0 s left · 3 rejected")
    assert progress.first_at == 10.0


def test_without_a_terminal_a_plain_line_comes_every_few_seconds() -> None:
    now = 0.0
    out = io.StringIO()
    with Progress(10_000, Totals(), Console(file=out), clock=lambda: now) as progress:
        for second in range(int(LOG_SECONDS * 3) + 1):
            now = float(second)
            progress.add(RECEIPT)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4, "three while it runs, and the last"
    assert not any("\x1b" in line for line in lines)


def test_the_time_left_is_told_from_tokens_and_the_last_minute() -> None:
    now = 0.0
    progress = Progress(1000, Totals(input_bytes=100, tokens=1000), Console(file=io.StringIO()), clock=lambda: now)
    for _ in range(20):
        now += 10
        progress.add(replace(RECEIPT, input_bytes=10, tokens=100, rows=1, encode_seconds=10))
    # 700 bytes are left, of 10 tokens each, at 10 a second; then a slice of rare, long rows takes its time.
    assert progress.seconds_left == pytest.approx(700)
    for _ in range(8):
        now += 100
        progress.add(replace(RECEIPT, input_bytes=10, tokens=100, rows=1))
    assert progress.seconds_left == pytest.approx(620 * 10 / 1)


VIEW = View((Doing("read", "a", "h", 1), Doing("encode", "b", "h", 1), Doing("encode", "c", "h", 1)), 0, 2)
BUSY = replace(RECEIPT, encode_seconds=9.7, wait_seconds=0.3, computed_tokens=100, encoded_tokens=98, input_bytes=40)


def test_on_a_terminal_each_stage_and_the_bottleneck_are_live() -> None:
    out = io.StringIO()
    progress = Progress(100, Totals(), Console(file=out, force_terminal=True, width=120, no_color=True))
    progress.watch(lambda: VIEW)
    with progress:
        progress.add(BUSY)
        for _ in range(STEADY_LOOKS):
            progress.look()
        drawn = Console(file=io.StringIO(), width=120)
        drawn.print(progress.panel())
    shown = drawn.file.getvalue()
    assert "40.0%" in shown and "1 slice" in shown
    assert re.search(r"read +1 busy", shown) and re.search(r"tokenize +0 busy", shown)
    assert re.search(r"encode +2 of 2 busy +9.70 s per slice, batches 98.0% full", shown)
    assert "encoders 100% busy: the hardware's limit" in shown
    assert "40.0%" in out.getvalue() and "━" in out.getvalue()


def test_in_a_log_the_line_says_what_the_run_waits_for() -> None:
    out = io.StringIO()
    now = 0.0
    progress = Progress(100, Totals(), Console(file=out), clock=lambda: now)
    progress.watch(lambda: replace(VIEW, doing=(Doing("tokenize", "a", "h", 1), *VIEW.doing[:2])))
    with progress:
        for _ in range(STEADY_LOOKS):
            progress.look()
        now = LOG_SECONDS
        progress.add(BUSY)
    first, last = out.getvalue().splitlines()
    assert first.endswith("encoders 50% busy, waiting for input: the store is slow, or too few CPUs read")
    assert "waiting" not in last


def test_before_the_first_commit_it_says_how_far_the_start_is_and_diagnoses_nothing() -> None:
    out = io.StringIO()
    now = 0.0
    views = [None, View(), View((), 1, 0), VIEW]
    progress = Progress(100, Totals(), Console(file=out), clock=lambda: now)
    progress.watch(lambda: views.pop(0))
    with progress:
        while views:
            now += LOG_SECONDS
            progress.look()
    start = "0 slices · 0.0% · 0 rows/s · 0 tokens/s · starting"
    assert out.getvalue().splitlines() == [
        start,
        f"{start} · waiting: no encoder has been placed in the cluster yet",
        f"{start} · waiting: encoders are loading the model",
        f"{start} · first slices: 1 in read, 2 in encode",
    ]


def test_it_looks_once_a_second_by_itself() -> None:
    looks = []
    progress = Progress(100, Totals(), Console(file=io.StringIO()))
    progress.watch(lambda: looks.append(1))
    with progress:
        wait_for(lambda: looks, 20, "it never looked")
    seen = len(looks)
    assert not any(thread.name == "progress" for thread in threading.enumerate())
    assert len(looks) == seen


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook_it_is_one_output_that_changes(tmp_path: Path, widgets: bool) -> None:
    """In a real kernel: a widget where there are widgets, else lines; and no warning."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}]
if not {widgets}:
    sys.modules["ipywidgets"] = None
from receipts import RECEIPT
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.shards.totals import Totals
with Progress(100, Totals()) as progress:
    assert progress.console.is_jupyter
    progress.add(RECEIPT)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (cell,) = notebook.cells
    assert "99.0%" in json.dumps(notebook, ensure_ascii=False)
    assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs
    assert any("widget-view" in kind for output in cell.outputs for kind in output.get("data", {})) == widgets
    saved = [output for output in cell.outputs if not any("widget-view" in kind for kind in output.get("data", {}))]
    assert "99.0%" in json.dumps(saved, ensure_ascii=False)  # also where widgets are gone


def test_durations_are_written_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 125, 14_820)] == ["0 s", "59 s", "2 min 5 s", "4 h 7 min"]


def test_rates_do_not_count_the_time_that_models_took_to_load() -> None:
    now = 0.0
    recent = Recent(lambda: now)
    stages = {f"{stage}_seconds": 1.0 for stage in ("read", "tokenize", "write")}
    now = 50.0
    recent.add(replace(RECEIPT, tokens=700, encode_seconds=4.0, **stages))
    assert recent.rate("tokens") == pytest.approx(100)


def test_long_slices_tell_how_far_they_are() -> None:
    out = io.StringIO()
    progress = Progress(400, Totals(), Console(file=out, width=120))
    one = Doing("encode", "a.parquet, slice 0-0", "host", 50.0, Part(0.25, 500.0, 50.0, 100.0))
    progress.watch(lambda: View((one, Doing("read", "b.parquet", "host", 1.0)), 0, 2))
    progress.look()
    assert progress.line() == "0 slices · 25.0% · 1 rows/s · 10 tokens/s · 2 min 30 s left"
    assert progress.report().doing == "first slices: 1 in read, 1 in encode · 1 slice in progress: 25% encoded"
    progress.watch(lambda: View((one, replace(one, part=Part(0.75, 1500.0, 150.0, 200.0))), 0, 2))
    progress.look()
    progress.console.print(progress.panel())
    assert "2 of 2 busy" in out.getvalue()
    assert "2 slices in progress: 50% encoded on average" in out.getvalue()


def test_the_share_does_not_fall_while_an_encoded_slice_is_written() -> None:
    progress = Progress(400, Totals(), Console(file=io.StringIO()))
    encoding = Doing("encode", "/in/a.parquet, slice 0-0", "host", 50.0, Part(0.8, 800.0, 80.0, 160.0))
    after = replace(encoding, what="/in/a.parquet, slice 0-1", part=Part(0.1, 100.0, 10.0, 20.0))
    views = [
        View((encoding,)),
        View((replace(encoding, stage="write", part=None),)),
        View((after,)),
        View((encoding, after)),
    ]
    shown = []
    for view in views[:3]:
        progress.watch(lambda view=view: view)
        progress.look()
        shown.append(progress.shown_share)
    progress.add(replace(RECEIPT, file="a.parquet", input_bytes=200))
    progress.watch(lambda: views[3])  # a snapshot that is older than the commit
    progress.look()
    assert [*shown, progress.shown_share] == pytest.approx([0.4, 0.4, 0.45, 0.55])


HALF = Part(0.5, 10.0, 1.0, 20.0)


def test_the_board_forgets_how_far_a_slice_was_when_it_ends() -> None:
    state = BoardState()
    state.report_part("encode", "slice", HALF)  # comes after its end
    state.begin("encode", "slice", "host")
    assert [doing.part for doing in state.snapshot().doing] == [None]
    state.report_part("encode", "slice", HALF)
    assert [doing.part for doing in state.snapshot().doing] == [HALF]
    state.end("encode", "slice")
    state.begin("encode", "slice", "host")
    assert [doing.part for doing in state.snapshot().doing] == [None]
