"""Fragments and slices: every row in exactly one, whatever the sizes."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray.corpus.cut import cut
from kosbert_ray.corpus.files import InputFile, RowGroup
from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.row_table import TEXT
from kosbert_ray.corpus.sizes import row_bytes
from kosbert_ray.errors import InputBroken

limits = st.builds(Limits, st.integers(1, 50), st.integers(1, 200))
groups = st.lists(st.builds(RowGroup, st.integers(0, 120), st.integers(0, 400)), max_size=12)


def parquet(row_groups: list[RowGroup], name: str = "a.parquet") -> InputFile:
    return InputFile(name, 1000, "v1", "parquet", None, tuple(row_groups))


def lines(size: int, compression: str | None = None, format: str = "jsonl") -> InputFile:
    return InputFile("a.jsonl", size, "v1", format, compression)


@given(groups, limits)
def test_parquet_fragments_hold_each_row_group_once_and_in_order(row_groups: list[RowGroup], limits: Limits) -> None:
    fragments = list(plan([parquet(row_groups)], limits))
    assert sum(fragment.stop - fragment.start for fragment in fragments) == sum(group.rows for group in row_groups)
    covered = [number for fragment in fragments for number in range(*fragment.row_groups)]
    assert covered == sorted(set(covered))
    assert {number for number, group in enumerate(row_groups) if group.rows} <= set(covered)
    at = 0
    for index, fragment in enumerate(fragments):
        assert (fragment.index, fragment.start) == (index, at)
        at = fragment.stop


@given(groups, limits)
def test_a_parquet_fragment_of_several_row_groups_keeps_within_the_limits(
    row_groups: list[RowGroup], limits: Limits
) -> None:
    for fragment in plan([parquet(row_groups)], limits):
        inside = [group for group in row_groups[slice(*fragment.row_groups)] if group.rows]
        if len(inside) > 1:
            assert sum(group.rows for group in inside) <= limits.max_rows
            assert sum(group.bytes for group in inside) <= limits.max_bytes


@given(st.integers(0, 5000), limits)
def test_byte_fragments_cover_a_line_file_without_gaps(size: int, limits: Limits) -> None:
    fragments = list(plan([lines(size)], limits))
    assert [fragment.start for fragment in fragments] == [0, *(fragment.stop for fragment in fragments[:-1])][
        : len(fragments)
    ]
    assert (fragments[-1].stop if fragments else 0) == size
    assert all(0 < fragment.stop - fragment.start <= limits.max_bytes for fragment in fragments)


def test_what_cannot_be_read_from_its_middle_is_one_fragment() -> None:
    assert len(list(plan([lines(10**6, "gzip")], Limits(1, 1)))) == 1
    assert len(list(plan([lines(10**6, format="csv")], Limits(1, 10**5), newlines_in_values=True))) == 1
    assert len(list(plan([lines(10**6, format="csv")], Limits(1, 10**5)))) == 10


texts = st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=80)


def batched(texts: list[str | None], sizes: list[int]) -> list[tuple[pa.Table, int]]:
    batches, at = [], 0
    for size in [*sizes, len(texts)]:
        batches.append((pa.table({TEXT: pa.array(texts[at : at + size], pa.large_string())}), size))
        at += size
    return batches


FRAGMENT = Fragment(lines(100), 0, 0, 100)


@given(texts, st.lists(st.integers(0, 30), max_size=8), limits)
def test_every_row_is_in_exactly_one_slice_and_slices_keep_within_the_limits(texts, sizes, limits) -> None:
    pieces = list(cut(FRAGMENT, batched(texts, sizes), limits))
    assert [row for _, table in pieces for row in table[TEXT].to_pylist()] == texts
    at = 0
    for index, (piece, table) in enumerate(pieces):
        assert (piece.index, piece.row, piece.rows) == (index, at, table.num_rows)
        assert piece.last == (index == len(pieces) - 1)
        size = sum(len((text or "").encode()) for text in table[TEXT].to_pylist())
        assert piece.rows <= limits.max_rows
        assert size <= limits.max_bytes or piece.rows == 1
        at += piece.rows


@given(texts, st.lists(st.integers(0, 30), max_size=8), limits)
def test_slices_do_not_depend_on_the_batches_that_rows_arrive_in(texts, sizes, limits) -> None:
    def names(sizes: list[int]) -> list[str]:
        return [piece.shard_name("fp") for piece, _ in cut(FRAGMENT, batched(texts, sizes), limits)]

    assert names(sizes) == names([])


@given(texts, st.lists(st.integers(0, 30), max_size=8), limits)
def test_bytes_read_are_shared_out_among_slices(texts, sizes, limits) -> None:
    batches = batched(texts, sizes)
    assert sum(piece.input_bytes for piece, _ in cut(FRAGMENT, batches, limits)) == sum(size for _, size in batches)


def test_a_fragment_without_rows_is_one_empty_last_slice() -> None:
    ((piece, table),) = cut(FRAGMENT, batched([], []), Limits())
    assert (piece.rows, piece.last, table.num_rows) == (0, True, 0)


def test_names_change_with_the_file_the_address_and_the_fingerprint_and_with_nothing_else() -> None:
    def name(file: str = "a/b.jsonl.gz", version: str = "v1", fingerprint: str = "fp", rows: int = 5) -> str:
        fragment = Fragment(InputFile(file, 100, version, "jsonl", "gzip"), 0, 0, 100)
        table = pa.table({TEXT: pa.array(["x"] * rows, pa.large_string())})
        ((piece, _),) = cut(fragment, [(table, 1)], Limits())
        return piece.shard_name(fingerprint)

    assert name() == name()
    assert name().startswith("b.00000-00000.")
    assert name().endswith(".parquet")
    assert len({name(), name(file="c/b.jsonl.gz"), name(version="v2"), name(fingerprint="other"), name(rows=6)}) == 5


@given(st.text(min_size=1, max_size=30))
def test_an_output_name_never_leaves_its_folder_and_is_never_hidden(stem: str) -> None:
    file = InputFile(f"x/{stem}.jsonl", 10, "v", "jsonl", None)
    ((piece, _),) = cut(Fragment(file, 0, 0, 10), [(pa.table({TEXT: pa.array(["x"], pa.large_string())}), 1)], Limits())
    name = piece.shard_name("fp")
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith((".", "_"))


def test_the_stem_of_an_output_name_is_cut_in_bytes(tmp_path) -> None:
    file = InputFile("가" * 85 + ".jsonl", 10, "v", "jsonl", None)
    ((piece, _),) = cut(Fragment(file, 0, 0, 10), [(pa.table({TEXT: pa.array(["x"], pa.large_string())}), 1)], Limits())
    name = piece.shard_name("fp")
    assert name.startswith("가" * 33 + ".00000-") and len(name.encode()) < 143
    (tmp_path / name).touch()


ARRAYS = {
    "string": (pa.array(["ab", None, "가"]), [2, 0, 3]),
    "view": (pa.array(["ab", None, "가"]).cast(pa.string_view()), [2, 0, 3]),
    "dictionary": (pa.array(["ab", "ab", "c"]).dictionary_encode(), [2, 2, 1]),
    "numbers": (pa.array([1, None, 3], pa.int32()), [4, 4, 4]),
    "booleans": (pa.array([True, None, False]), [1, 1, 1]),
    "lists": (pa.array([["a", "bc"], None, []]), [3, 0, 0]),
    "structs": (pa.array([{"a": "xy", "b": [1, 2]}, {"a": None, "b": None}, {"a": "z", "b": [1]}]), [18, 0, 9]),
    "maps": (pa.array([[("k", "vv")], [], None], pa.map_(pa.string(), pa.string())), [3, 0, 0]),
    "fixed lists": (pa.array([["a", "b"], ["c", "dd"], ["", ""]], pa.list_(pa.string(), 2)), [2, 3, 0]),
    "decimals": (pa.array([1, 2, 3], pa.decimal128(20, 2)), [16, 16, 16]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_bytes_of_a_row_are_the_same_in_each_slice_of_an_array(name: str) -> None:
    array, expected = ARRAYS[name]
    assert row_bytes(array).tolist() == expected
    assert [row_bytes(array.slice(row, 1)).tolist() for row in range(3)] == [[size] for size in expected]
    assert row_bytes(array.slice(0, 0)).tolist() == []


@given(st.lists(st.integers(0, 40), max_size=60), st.lists(st.integers(0, 30), max_size=8), st.integers(1, 100))
def test_a_slice_is_bounded_by_the_bytes_that_it_carries(sizes: list[int], steps: list[int], most: int) -> None:
    whole = pa.table(
        {TEXT: pa.array(["x"] * len(sizes), pa.large_string()), "html": pa.array(["h" * size for size in sizes])}
    )

    def pieces(steps: list[int]) -> list[tuple[int, list[int]]]:
        at, batches = 0, []
        for step in [*steps, len(sizes)]:
            batches.append((whole.slice(at, step), 1))
            at += step
        found = cut(FRAGMENT, batches, Limits(max_carried=most))
        return [(piece.index, np.array([len(v) for v in table["html"].to_pylist()]).tolist()) for piece, table in found]

    found = pieces([])
    assert found == pieces(steps)
    assert [size for _, lengths in found for size in lengths] == sizes
    assert all(sum(lengths) <= most or len(lengths) == 1 for _, lengths in found)


def test_what_came_before_a_fault_is_committed_and_the_fragment_stays_open() -> None:
    def broken():
        yield from batched(["a", "b", "c"], [2])
        raise InputBroken("cut short")

    found = []
    pieces = cut(FRAGMENT, broken(), Limits(2))
    with contextlib.suppress(InputBroken):
        found.extend((piece.index, piece.rows, piece.last, table[TEXT].to_pylist()) for piece, table in pieces)
        raise AssertionError("the fault is told after what came before it")
    assert found == [(0, 2, False, ["a", "b"]), (1, 1, False, ["c"])]
