"""Similarities are those of plain loops, whatever blocks they are computed in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.similarity import COSINES, PAIRS, maxsim
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.lists(st.integers(0, 2000), min_size=1, max_size=6))
def test_maxsim_in_blocks_is_the_plain_sum(queries: list[int], rows: list[int]) -> None:
    random_numbers = np.random.default_rng(0)
    asked = [random_numbers.standard_normal((length, 4), np.float32) for length in queries]
    values = random_numbers.standard_normal((sum(rows), 4), np.float32)
    found = maxsim(asked, TokenVectors.of_lengths(values, np.array(rows)))
    for row, part in enumerate(np.split(values, np.cumsum(rows)[:-1])):
        for number, query in enumerate(asked):
            right = (query @ part.T).max(axis=1).sum() if len(part) and len(query) else 0
            assert found[number, row] == pytest.approx(right, rel=1e-4, abs=1e-4)


def test_the_vectors_of_another_text_do_not_agree() -> None:
    vectors = SparseVectors.of_rows(np.array([[1, 2, 0], [0, 2, 0], [0, 0, 0]], np.float32))
    cosines = COSINES["sparse"](vectors, vectors.take(np.array([1, 1, 2])))
    assert cosines.tolist() == pytest.approx([2 / np.sqrt(5), 1, 1])
    assert COSINES["sparse"](vectors, vectors.take(np.array([0, 2, 0]))).tolist() == pytest.approx([1, 0, 0])
    tokens = TokenVectors.of_lengths(np.eye(4, dtype=np.float16), np.array([2, 2, 0]))
    assert COSINES["multi_vector"](tokens, tokens.take(np.array([1, 1, 2]))).tolist() == [0, 1, 1]


@pytest.mark.parametrize("share", [0.002, 0.9])  # multiplied as sparse and as dense matrices
def test_pairs_of_sparse_vectors(share: float) -> None:
    random = np.random.default_rng(0)
    rows = np.where(random.random((60, 5000)) < share, random.exponential(size=(60, 5000)), 0).astype(np.float32)
    rows[7] = 0
    found = PAIRS["sparse"](SparseVectors.of_rows(rows))
    assert np.allclose(found, unit(rows) @ unit(rows).T, atol=1e-5)
    assert found[7].tolist() == [0] * 60


def test_pairs_of_token_vectors() -> None:
    random = np.random.default_rng(0)
    texts = [random.standard_normal((length, 4)).astype(np.float32) for length in (3, 1, 0, 5)]
    found = PAIRS["multi_vector"](TokenVectors.of_lengths(np.concatenate(texts), np.array([3, 1, 0, 5])))
    for row, one in enumerate(texts):
        for column, other in enumerate(texts):
            right = (unit(one) @ unit(other).T).max(axis=1).mean() if len(one) and len(other) else 0
            assert found[row, column] == pytest.approx(right, abs=1e-5)
