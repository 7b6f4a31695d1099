"""A slice that meets an unforeseen error is dropped by name; the others continue."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import pyarrow as pa
import pytest

from kosbert_ray.errors import InputChanged
from kosbert_ray.run.executors.local import LocalExecutor
from kosbert_ray.run.slice_row import SliceRow
from kosbert_ray.run.stages.work import _guarded, run_stage
from kosbert_ray.shards.receipt import Receipt

ROW = SliceRow("in/a.jsonl, slice 0-1", Receipt.unfinished(file="a.jsonl"), columns={"x": pa.array([1])})


@pytest.mark.parametrize(
    ("error", "failed", "changed"),
    [
        (KeyError("address"), "in/a.jsonl, slice 0-1: stage write failed (KeyError: 'address')", ""),
        (InputChanged("a.jsonl: changed since the run began"), "", "a.jsonl"),
    ],
)
def test_a_slice_fails_by_name_and_leaves_its_columns_behind(error: Exception, failed: str, changed: str) -> None:
    def do(_: SliceRow) -> None:
        raise error

    row = _guarded("write", ROW, None, do)  # type: ignore[arg-type]
    assert row == SliceRow("in/a.jsonl, slice 0-1", failed=failed, changed=changed)
    assert row.dropped
    assert _guarded("write", row, None, do) is row  # type: ignore[arg-type]


def test_slices_that_travel_together_are_written_at_once_and_come_back_in_order() -> None:
    work = SimpleNamespace(board=LocalExecutor().start_board())
    rows = [replace(ROW, address=f"in/a.jsonl, slice 0-{number}") for number in range(4)]
    together = Barrier(4, timeout=20)

    def do(row: SliceRow) -> str:
        together.wait()
        if row.address.endswith("2"):
            raise KeyError("store")
        return row.address

    done = run_stage("write", rows, work, do, threads=4)  # type: ignore[arg-type]
    dropped = SliceRow(rows[2].address, failed="in/a.jsonl, slice 0-2: stage write failed (KeyError: 'store')")
    assert done == [rows[0].address, rows[1].address, dropped, rows[3].address]
