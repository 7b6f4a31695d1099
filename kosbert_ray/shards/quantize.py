"""Vectors in fewer bits, by the conventions of sentence-transformers' ``quantize_embeddings`` (its version 6)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

VectorType = Literal["float32", "float16", "int8", "ubinary"]
VECTOR_TYPES: tuple[VectorType, ...] = ("float32", "float16", "int8", "ubinary")
BUCKETS = 255


def ranges_of(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Smallest and largest value of each dimension, float32 ``[2, d]``: what int8 divides into 255 steps."""
    return np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32)


def quantize(
    vectors: npt.NDArray[np.float32], dtype: VectorType, ranges: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[Any]:
    """Vectors as they are stored.

    Args:
        vectors: float32 ``[n, d]``.
        dtype: "float32", "float16", "int8", or "ubinary", eight dimensions to a byte by their sign.
        ranges: float32 ``[2, d]``, of int8: smallest and largest value of each dimension; values beyond are cut.

    Returns:
        ``[n, d]`` of ``dtype``; of ubinary uint8 ``[n, ceil(d / 8)]``.
    """
    if dtype == "int8":
        if ranges is None:
            raise ValueError("int8 needs ranges")
        starts, ends = ranges
        steps = (ends - starts) / BUCKETS
        buckets = np.clip(np.floor((vectors - starts) / np.where(steps == 0, 1, steps)), 0, BUCKETS)
        return np.asarray(buckets - 128, np.int8)
    if dtype == "ubinary":
        return np.packbits(vectors > 0, axis=-1)
    return vectors.astype(dtype)


def truncate(vectors: npt.NDArray[np.float32], dimension: int, normalized: bool) -> npt.NDArray[np.float32]:
    """The first ``dimension`` numbers of each vector, made of length 1 again if the model's are.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
    """
    cut = vectors[:, :dimension]
    if not normalized:
        return cut
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.where(lengths == 0, 1, lengths), np.float32)
