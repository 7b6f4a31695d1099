"""Arithmetic on matrices of vectors that several rooms share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scales each row of a float matrix ``[n, d]`` to length 1, in the matrix's own precision. Zero rows stay zero."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[Any] = vectors / np.where(lengths == 0, 1, lengths)
    return scaled


def truncate(vectors: npt.NDArray[Any], dimension: int, normalized: bool) -> npt.NDArray[Any]:
    """Keeps the first ``dimension`` numbers of each row, rescaled to length 1 if ``normalized``.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
    """
    cut = vectors[:, :dimension]
    return unit(cut) if normalized else cut
