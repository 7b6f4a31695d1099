"""Spherical k-means: finds planted groups in blocks, and handles zero vectors and too few rows."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import adjusted_rand_score

from kosbert_ray.analysis.kmeans import assign, fit
from kosbert_ray.vectors.arithmetic import unit


def planted(groups: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(groups, 16)).astype(np.float32))
    truth = random.integers(groups, size=rows)
    lengths = random.uniform(0.5, 20, (rows, 1))  # cosines ignore lengths
    return ((centres[truth] + 0.05 * random.normal(size=(rows, 16))) * lengths).astype(np.float32), truth


def test_planted_groups_are_found_in_blocks() -> None:
    vectors, truth = planted(7, 3000)
    centres = fit(lambda number: np.array_split(np.roll(vectors, number, 0), 11), 7, 3, seed=1)
    labels, distances = assign(vectors, centres)
    assert adjusted_rand_score(truth, labels) > 0.99
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    expected = 1 - (unit(vectors) * centres[labels]).sum(1)
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_more_clusters_than_rows_and_zero_rows_are_allowed() -> None:
    vectors = np.zeros((5, 4), np.float32)
    vectors[:2, 0] = 1
    vectors[2:4, 1] = 2
    centres = fit(lambda _: [vectors, np.zeros((0, 4), np.float32)], 50, 2, seed=0)
    assert len(centres) == 3
    labels, distances = assign(vectors, centres)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert np.isfinite(distances).all()


def test_the_same_seed_gives_the_same_centres() -> None:
    vectors, _ = planted(5, 500)
    one, two = (fit(lambda _: [vectors], 5, 2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
