"""Teacher vectors: whitened, and computed once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import everyday

from kosbert_ray.encoder import Encoder
from kosbert_ray.errors import UsageError
from kosbert_ray.training import teacher as module
from kosbert_ray.training.config import TeacherConfig
from kosbert_ray.training.teacher import teacher_vectors, whiten

RANDOM = np.random.default_rng(0)
VECTORS = (RANDOM.normal(size=(5000, 6)) * [5, 3, 2, 1, 0.5, 0.1] @ RANDOM.normal(size=(6, 6)) + 3).astype(np.float32)


def test_full_whitening_gives_all_axes_equal_variance() -> None:
    whitened = whiten(VECTORS, 4, 1.0, centre=True)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=2e-3)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-3)


def test_power_0_keeps_distances_and_sorts_axes_by_variance() -> None:
    rotated = whiten(VECTORS, 6, 0.0, centre=True)
    after, before = (np.linalg.norm(vectors[:50] - vectors[50:100], axis=1) for vectors in (rotated, VECTORS))
    np.testing.assert_allclose(after, before, rtol=1e-3)
    assert (np.diff(rotated.var(0)) < 0).all()


def test_without_centring_dot_products_are_kept() -> None:
    rotated = whiten(VECTORS, 6, 0.0, centre=False)
    expected = (VECTORS[:50] * VECTORS[50:100]).sum(1)
    np.testing.assert_allclose((rotated[:50] * rotated[50:100]).sum(1), expected, rtol=2e-3)


def test_vectors_are_computed_once_and_in_parts(tiny_model: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "PART", 16)
    caplog.set_level(logging.INFO, "kosbert_ray.training.teacher")
    texts = everyday()[:40]
    config = TeacherConfig(model=str(tiny_model), whitening=None)
    path = teacher_vectors(config, texts, 128, tmp_path, None)
    assert [record.getMessage() for record in caplog.records if record.name == module.__name__] == [
        f"teacher: {done} of 40 texts" for done in (16, 32, 40)
    ]
    expected = Encoder.load(str(tiny_model)).encode(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((np.load(path) * expected).sum(1) > 0.9999).all()
    path.unlink()
    (tmp_path / path.name.partition("-")[0] / "00001.npy").unlink()
    caplog.clear()
    assert teacher_vectors(config, texts, 128, tmp_path, None) == path
    assert [record.getMessage() for record in caplog.records if record.name == module.__name__] == [
        "teacher: 32 of 40 texts"  # only the missing part is recomputed
    ]


@pytest.mark.parametrize(
    ("whitening", "dimension", "message"),
    [(None, 64, "set whitening to reduce them"), (0.5, 256, "has 128 dimensions, fewer than the student's 256")],
)
def test_incompatible_dimensions_are_refused(tiny_model, tmp_path, whitening, dimension, message) -> None:
    config = TeacherConfig(model=str(tiny_model), whitening=whitening)
    with pytest.raises(UsageError, match=message):
        teacher_vectors(config, ["가"], dimension, tmp_path, None)
