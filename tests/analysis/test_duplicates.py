"""Near-duplicates: the groups equal those of a plain comparison of all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kosbert_ray.analysis import duplicates
from kosbert_ray.analysis.duplicates import communities
from kosbert_ray.vectors.arithmetic import unit


def brute_force(vectors: np.ndarray, threshold: float) -> list[set[int]]:
    groups = [{index} for index in range(len(vectors))]
    for left in range(len(vectors)):
        for right in range(left):
            if vectors[left] @ vectors[right] >= threshold:
                one, two = (next(group for group in groups if index in group) for index in (left, right))
                if one is not two:
                    groups.remove(two)
                    one |= two
    return [group for group in groups if len(group) > 1]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), threshold=st.sampled_from([0.5, 0.8, 0.95]), seed=st.integers(0, 2**32 - 1))
def test_groups_equal_those_of_all_pairs(rows: int, threshold: float, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32))
    block, duplicates.BLOCK = duplicates.BLOCK, 7
    try:
        found = communities(vectors, threshold)
    finally:
        duplicates.BLOCK = block
    groups = [set(np.flatnonzero(found == number).tolist()) for number in range(found.max() + 1)]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, brute_force(vectors, threshold)))
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert ((found == -1) | (found >= 0)).all()
