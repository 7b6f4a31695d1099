"""Slices travel through Ray Data one a row, without copies and without Ray merging stages or splitting slices."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.errors import InputError, JobFailed
from kosbert_ray.run.executors.base import EncoderPool
from kosbert_ray.run.executors.ray.errors import error_of
from kosbert_ray.run.executors.ray.pipeline import TOKENIZE_CPUS, in_flight
from kosbert_ray.run.executors.ray.planned_reads import READ_CPUS
from kosbert_ray.run.read_tasks import MAX_READ_TASKS, shared_read_tasks
from kosbert_ray.run.slice_row import SliceRow, bundle, nest, unbundle, unnest
from kosbert_ray.run.stages.work import MAX_BUNDLED
from kosbert_ray.shards.receipt import Receipt


@given(st.lists(st.one_of(st.none(), st.text(max_size=5))), st.lists(st.integers(0, 9)))
def test_nesting_keeps_arrays_of_any_lengths(texts: list[str | None], numbers: list[int]) -> None:
    row = nest({"texts": pa.array(texts, pa.large_string()), "numbers": pa.array(numbers, pa.int64())})
    assert row.num_rows == 1
    assert unnest(row, "texts").to_pylist() == texts
    assert unnest(row, "numbers").to_pylist() == numbers


@given(st.lists(st.one_of(st.none(), st.lists(st.text(max_size=3), max_size=4)), min_size=1, max_size=5))
def test_a_bundle_gives_its_slices_back_as_they_were(slices: list[list[str] | None]) -> None:
    rows = [
        SliceRow(failed="x")
        if texts is None
        else SliceRow("a", Receipt.unfinished(tokens=1), ("n",), columns={"texts": pa.array(texts, pa.large_string())})
        for texts in slices
    ]
    travelling = bundle(rows)
    assert travelling.num_rows == 1
    assert unbundle(travelling) == rows


def test_vectors_are_not_copied_on_their_way() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    row = SliceRow("a", Receipt.unfinished(), columns={"vectors": pa.array(vectors.reshape(-1))})
    (found,) = unbundle(bundle([row]))
    there = found.columns["vectors"].to_numpy(zero_copy_only=True)
    assert there.__array_interface__["data"][0] == vectors.__array_interface__["data"][0]


@pytest.mark.parametrize(
    ("files", "most_bytes", "most_tasks"), [(5, 100, 1), (5, 10, 5), (1000, 10**9, 16), (300_000, 10, 2 * MAX_READ_TASKS)]
)
def test_small_files_share_read_tasks_and_each_is_in_one(files: int, most_bytes: int, most_tasks: int) -> None:
    pending = [(Fragment(InputFile(f"{number}", 10, "", "text"), 0, 0, 10), frozenset[int]()) for number in range(files)]
    tasks = shared_read_tasks(pending, most_bytes)
    assert [item for task in tasks for item in task] == pending
    assert len(tasks) <= most_tasks
    assert max(map(len, tasks)) <= max(MAX_BUNDLED, -(-files // MAX_READ_TASKS))


def test_neighbouring_stages_ask_for_different_shares_so_that_ray_does_not_fuse_them() -> None:
    whole_cores = 1  # what a CPU encoder asks for, at least
    assert len({READ_CPUS, TOKENIZE_CPUS, whole_cores}) == 3


def test_an_error_of_ours_comes_back_as_itself_from_under_rays_wrapping() -> None:
    ours = InputError("a.gz: broken")
    wrapped = RayTaskError("f", "Traceback …", ours).as_instanceof_cause()
    wrapped.__cause__ = None
    error = error_of(wrapped)
    assert type(error) is InputError
    assert str(error) == "a.gz: broken"
    foreign = error_of(RayTaskError("f", "Traceback …", ValueError("no such thing\nand more")).as_instanceof_cause())
    assert type(foreign) is JobFailed
    assert "ValueError: no such thing" in str(foreign)
    assert "\n" not in str(foreign)


def test_few_slices_are_not_sent_ahead_of_the_encoders_that_start_later() -> None:
    """With many, one is fetched while another is encoded; then Ray Data also adds encoders."""
    pool = EncoderPool(2, 16, cpus=1, gpus=0, threads=1)
    pending = [(Fragment(InputFile("a", size, "", "text"), 0, 0, size), frozenset[int]()) for size in (600_000, 300_000)]
    assert in_flight(pending, pool, Limits(16_384, 10**6)) == 1
    assert in_flight(pending * 4, pool, Limits(16_384, 10**6)) == 2
    assert in_flight(pending, pool, Limits(100, 10**6)) == 2
    assert in_flight(pending, pool, Limits(16_384, 10**5)) == 2
