"""A teacher's vectors: turned, whitened, and computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import everyday

from kosbert_ray.encoder import Encoder
from kosbert_ray.errors import UsageError
from kosbert_ray.training import teacher as module
from kosbert_ray.training.config import TeacherConfig
from kosbert_ray.training.teacher import teacher_vectors, turn

RANDOM = np.random.default_rng(0)
VECTORS = (RANDOM.normal(size=(5000, 6)) * [5, 3, 2, 1, 0.5, 0.1] @ RANDOM.normal(size=(6, 6)) + 3).astype(np.float32)


def test_whole_whitening_makes_all_axes_count_the_same() -> None:
    turned = turn(VECTORS, 4, 1.0, centre=True)
    np.testing.assert_allclose(np.cov(turned.T), np.eye(4), atol=2e-3)
    np.testing.assert_allclose(turned.mean(0), 0, atol=1e-3)


def test_no_whitening_keeps_distances_and_the_largest_axes() -> None:
    turned = turn(VECTORS, 6, 0.0, centre=True)
    apart, before = (np.linalg.norm(vectors[:50] - vectors[50:100], axis=1) for vectors in (turned, VECTORS))
    np.testing.assert_allclose(apart, before, rtol=1e-3)
    assert (np.diff(turned.var(0)) < 0).all()


def test_without_centring_dot_products_stay() -> None:
    turned = turn(VECTORS, 6, 0.0, centre=False)
    np.testing.assert_allclose((turned[:50] * turned[50:100]).sum(1), (VECTORS[:50] * VECTORS[50:100]).sum(1), rtol=2e-3)


def test_vectors_are_computed_once_and_part_by_part(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PART", 16)
    texts = everyday()[:40]
    said: list[str] = []
    config = TeacherConfig(model=str(tiny_model), whitening=None)
    path = teacher_vectors(config, texts, 128, tmp_path, None, said.append)
    assert len(said) == 3
    expected = Encoder.load(str(tiny_model)).encode(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((np.load(path) * expected).sum(1) > 0.9999).all()
    path.unlink()
    (tmp_path / path.name.partition("-")[0] / "00001.npy").unlink()
    assert teacher_vectors(config, texts, 128, tmp_path, None, said.append) == path
    assert len(said) == 4  # one part was missing


@pytest.mark.parametrize(
    ("whitening", "dimension", "message"),
    [(None, 64, "set whitening to reduce them"), (0.5, 256, "128 dimensions, fewer than the student's 256")],
)
def test_dimensions_that_do_not_go_together_are_told(tiny_model, tmp_path, whitening, dimension, message) -> None:
    config = TeacherConfig(model=str(tiny_model), whitening=whitening)
    with pytest.raises(UsageError, match=message):
        teacher_vectors(config, ["가"], dimension, tmp_path, None)
