"""Fewer bits: the same numbers as sentence-transformers makes."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from kosbert_ray.shards.vector_types import dequantize, quantize, ranges_of, truncate

VECTORS = np.random.default_rng(0).normal(size=(200, 90)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "int8", "ubinary"])
def test_types_are_those_of_sentence_transformers(dtype: str) -> None:
    theirs = quantize_embeddings(VECTORS[100:], precision=dtype, calibration_embeddings=VECTORS[:100])
    ours = quantize(VECTORS[100:], dtype, ranges_of(VECTORS[:100]))
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_a_dimension_that_is_the_same_everywhere_does_no_harm() -> None:
    vectors = VECTORS.copy()
    vectors[:, 3] = 0.5
    theirs = quantize_embeddings(vectors, precision="int8", ranges=np.array(ranges_of(vectors), np.float32))
    np.testing.assert_array_equal(quantize(vectors, "int8", ranges_of(vectors)), theirs)


def test_truncated_vectors_have_length_1_only_where_the_model_promises_it() -> None:
    assert np.allclose(np.linalg.norm(truncate(VECTORS, 32, True), axis=1), 1)
    np.testing.assert_array_equal(truncate(VECTORS, 32, False), VECTORS[:, :32])


def test_int8_comes_back_within_half_a_step_and_ubinary_as_signs() -> None:
    ranges = ranges_of(VECTORS)
    back = dequantize(quantize(VECTORS, "int8", ranges), "int8", 90, ranges)
    steps = (np.array(ranges[1]) - np.array(ranges[0])) / 255
    assert (np.abs(back - VECTORS) <= steps * 0.501).all()
    signs = dequantize(quantize(VECTORS, "ubinary"), "ubinary", 90)
    np.testing.assert_array_equal(signs, np.where(VECTORS > 0, 1, -1))
    assert signs.dtype == back.dtype == np.float32
    assert np.shares_memory(dequantize(VECTORS, "float32", 90), VECTORS)
