"""A teacher's vectors of all texts, computed once by our own encoder and kept on disk part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.files import sha256
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.source import ModelSource, fetch_model
from kosbert_ray.encoder.spec import ModelSpec, SpecOptions, read_spec
from kosbert_ray.errors import UsageError
from kosbert_ray.training.config import TeacherConfig

PART = 16_384
EPSILON = 1e-12


def teacher_vectors(
    teacher: TeacherConfig, texts: list[str], dimension: int, folder: Path, threads: int | None, say: Callable[[str], None]
) -> Path:
    """Vectors of ``texts`` as the student is to learn them, of length 1, in a ``.npy`` file: float32 ``[n, dimension]``.

    What is computed already, by the same teacher for the same texts, is not computed again.

    Args:
        teacher: the model, its prompt and how its vectors are turned.
        texts: ``n`` texts.
        dimension: of the student.
        folder: where to keep them.
        threads: on a CPU.
        say: takes a line for the user.

    Raises:
        ModelError: there is no such model.
        UsageError: the dimensions do not go together.
    """
    source = fetch_model(ModelSource(teacher.model))
    spec = read_spec(source, SpecOptions(prompt=teacher.prompt))
    if spec.dimension < dimension:
        raise UsageError(f"teacher {teacher.model}: {spec.dimension} dimensions, fewer than the student's {dimension}")
    if teacher.whitening is None and spec.dimension != dimension:
        raise UsageError(
            f"teacher {teacher.model}: {spec.dimension} dimensions, and the student has {dimension}; set whitening to "
            "reduce them"
        )
    said = [sha256(source, spec.weight_files), spec.prompt, PART]
    key = hashlib.sha256("\0".join([json.dumps(said), *texts]).encode("utf-8", "replace")).hexdigest()[:16]
    parts = folder / key
    turned = folder / f"{key}-{dimension}-{teacher.whitening}-{'centred' if teacher.centre else 'as-is'}.npy"
    if turned.exists():
        return turned
    parts.mkdir(parents=True, exist_ok=True)
    raw = _encode(spec, texts, parts, threads, say)
    vectors = raw if teacher.whitening is None else turn(raw, dimension, teacher.whitening, teacher.centre)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), EPSILON)
    partial = turned.with_suffix(".partial.npy")
    np.save(partial, vectors.astype(np.float32))
    partial.rename(turned)
    return turned


def _encode(
    spec: ModelSpec, texts: list[str], folder: Path, threads: int | None, say: Callable[[str], None]
) -> npt.NDArray[np.float32]:
    encoder: Encoder | None = None
    found = []
    for start in range(0, len(texts), PART):
        path = folder / f"{start // PART:05d}.npy"
        if not path.exists():
            encoder = encoder or Encoder(spec, EncoderOptions(threads=threads))
            partial = path.with_suffix(".partial.npy")
            np.save(partial, encoder.encode(texts[start : start + PART]).astype(np.float16))
            partial.rename(path)
            say(f"teacher: {min(start + PART, len(texts)):,} of {len(texts):,} texts")
        found.append(np.load(path))
    return np.concatenate(found).astype(np.float32)


def turn(vectors: npt.NDArray[np.float32], dimension: int, power: float, centre: bool) -> npt.NDArray[np.float32]:
    """Turns vectors to their principal axes, keeps the first and divides axis ``i`` by ``std_i ** power``.

    Args:
        vectors: ``[n, d]``.
        dimension: how many axes to keep, those of the largest spread.
        power: 0 keeps the spread of the axes, 1 makes it the same for all.
        centre: whether to move their mean to the origin first.

    Returns:
        float32 ``[n, dimension]``.

    Source: Su et al. 2021, "Whitening Sentence Representations" (arXiv:2103.15316).
    """
    moved = vectors - vectors.mean(0) if centre else vectors
    variances, axes = np.linalg.eigh(moved.T @ moved / max(1, len(vectors)))
    order = np.argsort(variances)[::-1][:dimension]
    scale = np.sqrt(np.maximum(variances[order], EPSILON)) ** power
    turned: npt.NDArray[np.float32] = (moved @ (axes[:, order] / scale)).astype(np.float32)
    return turned
