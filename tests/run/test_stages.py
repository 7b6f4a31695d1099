"""A slice that meets an unforeseen error is dropped by name; the others continue."""

from __future__ import annotations

import pyarrow as pa
import pytest

from kosbert_ray.errors import InputChanged
from kosbert_ray.run.slice_row import SliceRow
from kosbert_ray.run.stages.work import _guarded
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
