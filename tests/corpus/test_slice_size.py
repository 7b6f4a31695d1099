"""The size of slices that is chosen by a rule, and how a target ends slices."""

from __future__ import annotations

from itertools import cycle, islice

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray.corpus.cut import cut
from kosbert_ray.corpus.files import InputFile, RowGroup
from kosbert_ray.corpus.fragments import Fragment, Limits, limits_of
from kosbert_ray.corpus.options import MAX_BYTES, TARGET_ROWS
from kosbert_ray.corpus.row_table import TEXT
from kosbert_ray.corpus.slice_size import target_bytes, text_bytes
from kosbert_ray.encoder.plain_speed import plain_bytes_per_second
from kosbert_ray.model.parameters import computing_parameters
from kosbert_ray.model.source import bundled_path
from kosbert_ray.model.spec import read_spec

FRAGMENT = Fragment(InputFile("a.jsonl", 100, "v", "jsonl"), 0, 0, 100)


def file(size: int, kind: str = "jsonl", compression: str | None = None, groups: tuple[RowGroup, ...] = ()) -> InputFile:
    return InputFile("a", size, "v", kind, compression, groups)


@pytest.mark.parametrize(
    ("size", "speed", "gpu", "target"),
    [
        (10**9, 1e4, False, 200_000),  # 20 seconds of a core
        (10**9, 1e6, True, 2_000_000),  # 2 seconds of a GPU
        (10**6, 1e6, False, 62_500),  # a sixteenth of the corpus
        (10**12, 1e9, True, MAX_BYTES),
        (0, 1e4, False, 1),
    ],
)
def test_a_slice_takes_a_while_and_there_are_sixteen(size: int, speed: float, gpu: bool, target: int) -> None:
    assert target_bytes([file(size // 2), file(size - size // 2)], speed, gpu) == target


def test_the_bytes_of_text_are_known_or_estimated() -> None:
    assert text_bytes(file(100)) == 100
    assert text_bytes(file(100, compression="gzip")) == 300
    assert text_bytes(file(100, kind="arrow")) == 300
    assert text_bytes(file(100, kind="parquet", groups=(RowGroup(2, 40), RowGroup(3, 50)))) == 90


def test_a_plain_device_has_a_speed_by_the_models_size() -> None:
    spec = read_spec(bundled_path("bundled:kosbert-mini"))
    core = plain_bytes_per_second(spec, gpu=False)
    assert core == pytest.approx(5 * 1e11 / 2 / computing_parameters(spec))
    assert plain_bytes_per_second(spec, gpu=True) == pytest.approx(1000 * core)


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=30)


@given(sizes, st.integers(0, 5000), st.integers(1, 60_000), st.lists(st.integers(0, 2000), max_size=5))
def test_a_slice_ends_at_its_target_but_not_before_1024_rows(lengths, count: int, target: int, batches) -> None:
    texts = ["x" * length for length in islice(cycle(lengths), count)]
    limits = Limits(10_000, 10**6, target_bytes=target)

    def pieces(batches: list[int]) -> list[int]:
        found, at = [], 0
        for size in [*batches, count]:
            found.append((pa.table({TEXT: pa.array(texts[at : at + size], pa.large_string())}), size))
            at += size
        return [piece.rows for piece, _ in cut(FRAGMENT, found, limits)]

    rows = pieces([])
    assert sum(rows) == count
    assert rows == pieces(batches)
    at = 0
    for number in rows[:-1]:
        size = sum(map(len, texts[at : at + number]))
        assert number >= TARGET_ROWS
        assert size <= target or number == TARGET_ROWS
        assert size + len(texts[at + number]) > target
        at += number


def test_the_maxima_win_over_a_target() -> None:
    table = pa.table({TEXT: pa.array(["x" * 10] * 3000, pa.large_string())})
    assert [piece.rows for piece, _ in cut(FRAGMENT, [(table, 1)], Limits(100, 10**6, target_bytes=1))][:2] == [100, 100]
    assert [piece.rows for piece, _ in cut(FRAGMENT, [(table, 1)], Limits(9999, 500, target_bytes=1))][:2] == [50, 50]


def test_a_target_is_part_of_the_name_of_a_cut() -> None:
    assert Limits(5, 9).cut == "2;5;9"
    for limits in (Limits(5, 9), Limits(5, 9, target_bytes=7)):
        assert limits_of(limits.cut) == limits
    assert Limits(5, 9).cut != Limits(5, 9, target_bytes=7).cut
