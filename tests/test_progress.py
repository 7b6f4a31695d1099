"""What a person sees: counts, rates, the time left."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from test_ledger import RECEIPT

from kosbert_ray.job.progress import LOG_SECONDS, Progress, Totals, duration


def test_the_line_counts_what_is_done_and_tells_the_time_left_from_the_bytes_read() -> None:
    now = 100.0
    progress = Progress(400, Totals(slices=1, input_bytes=100), Console(file=io.StringIO()), clock=lambda: now)
    assert "1 slices · 25.0%" in progress.line()
    assert "starting" in progress.line()
    now = 110.0
    progress.add(replace(RECEIPT, input_bytes=100, rows=50, tokens=700, rejected=0))
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


def test_on_a_terminal_the_line_is_live() -> None:
    out = io.StringIO()
    with Progress(100, Totals(), Console(file=out, force_terminal=True)) as progress:
        progress.add(RECEIPT)
    assert "99.0%" in out.getvalue()


def test_durations_are_written_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 125, 14_820)] == ["0 s", "59 s", "2 min 5 s", "4 h 7 min"]
