"""Teacher vectors: computed once with kosbert-ray's encoder and cached on disk in parts."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import ModelSpec, read_spec
from kosbert_ray.training.config import TeacherConfig
from kosbert_ray.units import plural

log = logging.getLogger(__name__)

PART = 16_384  # texts per cached file
EPSILON = 1e-12


def teacher_vectors(teacher: TeacherConfig, texts: list[str], dimension: int, folder: Path, threads: int | None) -> Path:
    """Computes the vectors that the student learns. Reuses those cached for the same teacher and texts.

    Args:
        teacher: model, prompt and whitening.
        texts: ``n`` texts.
        dimension: dimension of the student.
        folder: cache folder.
        threads: CPU threads.

    Returns:
        A ``.npy`` file with vectors of length 1, float32 ``[n, dimension]``.

    Raises:
        ModelError: the teacher does not exist or cannot be loaded.
        UsageError: the teacher's dimension is too small, or differs from the student's without whitening.
    """
    source = locate_folder(ModelSource(teacher.model))
    spec = read_spec(source, SpecOptions(prompt=teacher.prompt))
    if spec.dimension < dimension:
        raise UsageError(f"teacher {teacher.model}: has {spec.dimension} dimensions, fewer than the student's {dimension}")
    if teacher.whitening is None and spec.dimension != dimension:
        raise UsageError(
            f"teacher {teacher.model}: has {spec.dimension} dimensions, but the student has {dimension}; set whitening to "
            "reduce them"
        )
    identity = [sha256(source, spec.weight_files), spec.prompt, PART]
    key = hashlib.sha256("\0".join([json.dumps(identity), *texts]).encode("utf-8", "replace")).hexdigest()[:16]
    parts = folder / key
    path = folder / f"{key}-{dimension}-{teacher.whitening}-{'centred' if teacher.centre else 'as-is'}.npy"
    if path.exists():
        return path
    parts.mkdir(parents=True, exist_ok=True)
    raw = _encode(spec, texts, parts, threads)
    vectors = raw if teacher.whitening is None else whiten(raw, dimension, teacher.whitening, teacher.centre)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), EPSILON)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors.astype(np.float32))
    partial.rename(path)
    return path


def _encode(spec: ModelSpec, texts: list[str], folder: Path, threads: int | None) -> npt.NDArray[np.float32]:
    encoder: Encoder | None = None
    parts = []
    for start in range(0, len(texts), PART):
        path = folder / f"{start // PART:05d}.npy"
        if not path.exists():
            encoder = encoder or Encoder(spec, EncoderOptions(threads=threads))
            partial = path.with_suffix(".partial.npy")
            np.save(partial, encoder.encode(texts[start : start + PART]).astype(np.float16))
            partial.rename(path)
            log.info(f"teacher: {min(start + PART, len(texts)):,} of {plural(len(texts), 'text')}")
        parts.append(np.load(path))
    return np.concatenate(parts).astype(np.float32)


def whiten(vectors: npt.NDArray[np.float32], dimension: int, power: float, centre: bool) -> npt.NDArray[np.float32]:
    """Rotates vectors to their principal axes, keeps the first ones and divides axis ``i`` by ``std_i ** power``.

    Args:
        vectors: float32 ``[n, d]``.
        dimension: number of axes to keep, those of the largest variance.
        power: 0 keeps the variance of each axis, 1 gives all axes equal variance.
        centre: subtract the mean first.

    Returns:
        float32 ``[n, dimension]``.

    Source: Su et al. 2021, "Whitening Sentence Representations" (arXiv:2103.15316).
    """
    moved = vectors - vectors.mean(0) if centre else vectors
    variances, axes = np.linalg.eigh(moved.T @ moved / max(1, len(vectors)))
    order = np.argsort(variances)[::-1][:dimension]
    scale = np.sqrt(np.maximum(variances[order], EPSILON)) ** power
    whitened: npt.NDArray[np.float32] = (moved @ (axes[:, order] / scale)).astype(np.float32)
    return whitened
