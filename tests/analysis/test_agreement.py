"""Agreement of two models: full for the same vectors, rotated or scaled, and at chance level for unrelated ones."""

from __future__ import annotations

import numpy as np
import pytest

from kosbert_ray.analysis.agreement import Agreement
from kosbert_ray.analysis.agreement import agreement as agreement_of
from kosbert_ray.vectors.similarity import PAIRS

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(300, 32)).astype(np.float32)


def agreement(first: np.ndarray, second: np.ndarray, k: int) -> Agreement:
    return agreement_of(PAIRS["dense"](first), PAIRS["dense"](second), k)


def test_rotated_and_scaled_vectors_agree_fully() -> None:
    rotation, _ = np.linalg.qr(RANDOM.normal(size=(32, 32)))
    other = (3 * VECTORS @ rotation).astype(np.float32)
    found = agreement(VECTORS, other, 10)
    assert (found.rows, found.k, found.overlap, found.same_nearest) == (300, 10, 1, 1)
    assert found.correlation == pytest.approx(1, abs=1e-6)


def test_unrelated_vectors_agree_at_chance_level() -> None:
    found = agreement(VECTORS, RANDOM.normal(size=(300, 16)).astype(np.float32), 30)
    assert found.overlap == pytest.approx(30 / 299, abs=0.02)


def test_overlap_equals_a_plain_count() -> None:
    one = VECTORS[:40]
    other = one + 0.5 * RANDOM.normal(size=one.shape).astype(np.float32)
    found = agreement(one, other, 5)

    def nearest(vectors: np.ndarray, row: int) -> list[int]:
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = vectors @ vectors[row] / lengths / lengths[row]
        return [index for index in np.argsort(-cosines).tolist() if index != row][:5]

    pairs = [(nearest(one, row), nearest(other, row)) for row in range(40)]
    assert found.overlap == pytest.approx(np.mean([len({*a} & {*b}) / 5 for a, b in pairs]))
    assert found.same_nearest == pytest.approx(np.mean([a[0] == b[0] for a, b in pairs]))


def test_k_is_reduced_for_few_texts() -> None:
    assert agreement(VECTORS[:4], VECTORS[:4], 10).k == 3


def test_equal_similarities_have_no_correlation() -> None:
    equal = np.ones_like(VECTORS[:9])
    assert agreement(equal, VECTORS[:9], 3).correlation is None
    assert agreement(equal, equal, 3).overlap == 1
