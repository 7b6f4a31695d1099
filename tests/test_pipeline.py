"""Slices travel through Ray Data one a row, without copies and without Ray merging stages or splitting slices."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError

from kosbert_ray.errors import InputError, JobFailed
from kosbert_ray.job.pipeline import READ_CPUS, TOKENIZE_CPUS, error_of
from kosbert_ray.job.rows import nest, unnest


@given(st.lists(st.one_of(st.none(), st.text(max_size=5))), st.lists(st.integers(0, 9)))
def test_nesting_keeps_arrays_of_any_lengths(texts: list[str | None], numbers: list[int]) -> None:
    row = nest({"texts": pa.array(texts, pa.large_string()), "numbers": pa.array(numbers, pa.int64())})
    assert row.num_rows == 1
    assert unnest(row, "texts").to_pylist() == texts
    assert unnest(row, "numbers").to_pylist() == numbers


def test_vectors_are_not_copied_on_their_way() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    there = unnest(nest({"vectors": pa.array(vectors.reshape(-1))}), "vectors").to_numpy(zero_copy_only=True)
    assert there.__array_interface__["data"][0] == vectors.__array_interface__["data"][0]


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
