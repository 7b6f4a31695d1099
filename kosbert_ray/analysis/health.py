"""Quality measures of a sample of vectors: lengths, spread across dimensions, and similarity of random pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAIRS = 20_000
CONSTANT = 1e-6  # a dimension with a smaller standard deviation counts as constant


@dataclass(frozen=True)
class Health:
    """Measures of ``n`` vectors with ``d`` dimensions.

    Attributes:
        norms: length of each vector, float32 ``[n]``.
        deviations: standard deviation of each dimension, largest first, float32 ``[d]``.
        cosines: cosines of random pairs, float32 ``[PAIRS]``.
        anisotropy: mean of ``cosines``: near 0 if the vectors point in all directions, near 1 if all point the same way.
        effective_dimensions: participation ratio of the covariance's eigenvalues; ``d`` if all directions vary equally.
        constant: number of constant dimensions.
        repeated: number of vectors that equal an earlier one.

    Source: Ethayarajh 2019, "How Contextual are Contextualized Word Representations?" (anisotropy).
    """

    norms: npt.NDArray[np.float32]
    deviations: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    anisotropy: float
    effective_dimensions: float
    constant: int
    repeated: int


def random_pairs(count: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Picks random pairs of different numbers below ``count``, which is at least 2.

    Returns:
        The first and the second number of each pair, int64 ``[PAIRS]``.
    """
    random = np.random.default_rng(seed)
    first = random.integers(0, count, PAIRS)
    return first, (first + random.integers(1, count, PAIRS)) % count


def health(vectors: npt.NDArray[np.float32], seed: int = 0) -> Health:
    """Measures at least two vectors, float32 ``[n, d]``."""
    norms = np.linalg.norm(vectors, axis=1)
    directions = vectors / np.where(norms == 0, 1, norms)[:, None]
    first, second = random_pairs(len(vectors), seed)
    cosines = np.einsum("nd,nd->n", directions[first], directions[second])
    deviations = vectors.std(axis=0)
    spectrum = np.clip(np.linalg.eigvalsh(np.cov(vectors, rowvar=False).reshape(vectors.shape[1], -1)), 0, None)
    total = float((spectrum**2).sum())
    return Health(
        norms=norms,
        deviations=np.sort(deviations)[::-1],
        cosines=cosines,
        anisotropy=float(cosines.mean()),
        effective_dimensions=float(spectrum.sum()) ** 2 / total if total else 0.0,
        constant=int((deviations < CONSTANT).sum()),
        repeated=len(vectors) - len(np.unique(vectors, axis=0)),
    )
