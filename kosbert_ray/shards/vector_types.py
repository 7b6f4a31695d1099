"""Vectors in fewer bits, by the conventions of sentence-transformers' ``quantize_embeddings`` (its version 6)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

VectorType = Literal["float32", "float16", "int8", "ubinary"]
VECTOR_TYPES: tuple[VectorType, ...] = ("float32", "float16", "int8", "ubinary")
Ranges = tuple[tuple[float, ...], ...]  # smallest values, largest values; empty for other types than int8
BUCKETS = 255


def ranges_of(vectors: npt.NDArray[np.float32]) -> Ranges:
    """Smallest and largest value of each dimension, in float32: what int8 divides into 255 steps."""
    return tuple(vectors.min(0).tolist()), tuple(vectors.max(0).tolist())


def _steps(ranges: Ranges) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    if not ranges:
        raise ValueError("int8 needs ranges")
    starts, ends = np.array(ranges, np.float32)
    return starts, (ends - starts) / BUCKETS


def quantize(vectors: npt.NDArray[np.float32], dtype: VectorType, ranges: Ranges = ()) -> npt.NDArray[Any]:
    """Vectors as they are stored.

    Args:
        vectors: float32 ``[n, d]``.
        dtype: "float32", "float16", "int8", or "ubinary", eight dimensions to a byte by their sign.
        ranges: of int8: smallest and largest value of each dimension; values beyond are cut.

    Returns:
        ``[n, d]`` of ``dtype``; of ubinary uint8 ``[n, ceil(d / 8)]``. float32 is not copied.
    """
    if dtype == "int8":
        starts, steps = _steps(ranges)
        buckets = np.clip(np.floor((vectors - starts) / np.where(steps == 0, 1, steps)), 0, BUCKETS)
        return np.asarray(buckets - 128, np.int8)
    if dtype == "ubinary":
        return np.packbits(vectors > 0, axis=-1)
    return vectors.astype(dtype, copy=False)


def dequantize(values: npt.NDArray[Any], dtype: VectorType, dimension: int, ranges: Ranges = ()) -> npt.NDArray[np.float32]:
    """What :func:`quantize` stored, as numbers again: of int8 the middle of its step, of ubinary 1 or -1.

    Args:
        values: ``[n, d]``, of ubinary ``[n, ceil(d / 8)]``.
        dtype: their type.
        dimension: ``d``.
        ranges: of int8.

    Returns:
        float32 ``[n, d]``; float32 is not copied.
    """
    if dtype == "int8":
        starts, steps = _steps(ranges)
        numbers = values.astype(np.float32)
        numbers += 128.5
        numbers *= steps
        numbers += starts
        return numbers
    if dtype == "ubinary":
        numbers = np.unpackbits(values, axis=-1, count=dimension).astype(np.float32)
        numbers *= 2
        numbers -= 1
        return numbers
    return values.astype(np.float32, copy=False)


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)


def truncate(vectors: npt.NDArray[np.float32], dimension: int, normalized: bool) -> npt.NDArray[np.float32]:
    """The first ``dimension`` numbers of each vector, made of length 1 again if the model's are.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
    """
    cut = vectors[:, :dimension]
    return unit(cut) if normalized else cut
