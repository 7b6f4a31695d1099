"""A stage that meets what nobody foresaw loses one slice, by name."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from kosbert_ray.errors import InputChanged
from kosbert_ray.run.slice_row import nest, notes_of, with_notes
from kosbert_ray.run.stages import _unmarked

NOTES = {"address": "in/a.jsonl, slice 0-1", "file": "a.jsonl"}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyError("address"), {"failed": "in/a.jsonl, slice 0-1: stage write failed (KeyError: 'address')"}),
        (InputChanged("a.jsonl: changed since the run began"), {"changed": "a.jsonl"}),
    ],
)
def test_a_slice_fails_by_name_whatever_the_stage_has_done_to_its_notes(error: Exception, outcome: dict) -> None:
    def do(_: pa.Table, notes: dict[str, Any]) -> None:
        notes.clear()
        raise error

    row = with_notes(nest({"x": pa.array([1])}), NOTES)
    assert notes_of(_unmarked("write", row, None, do)) == outcome  # type: ignore[arg-type]
