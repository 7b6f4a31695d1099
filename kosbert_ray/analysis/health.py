"""Do vectors use the space they are in? Lengths, spread and likeness of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAIRS = 20_000
CONSTANT = 1e-6  # a dimension whose values differ by less says nothing


@dataclass(frozen=True)
class Health:
    """Figures of ``n`` vectors of ``d`` dimensions.

    Attributes:
        norms: float32 ``[n]``, their lengths.
        deviations: float32 ``[d]``, the standard deviation of each dimension, largest first.
        cosines: float32, of pairs picked at random.
        anisotropy: the mean of these; near 0 where vectors point everywhere, near 1 where all point one way.
        effective_dimensions: participation ratio of the covariance's eigenvalues: ``d`` where all dimensions spread alike.
        constant: dimensions that are the same in all vectors.
        repeated: vectors that stand in the sample before.

    Source: Ethayarajh 2019, "How Contextual are Contextualized Word Representations?" (anisotropy).
    """

    norms: npt.NDArray[np.float32]
    deviations: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    anisotropy: float
    effective_dimensions: float
    constant: int
    repeated: int


def health(vectors: npt.NDArray[np.float32], seed: int = 0) -> Health:
    """Measures float32 ``[n, d]``, two vectors or more."""
    norms = np.linalg.norm(vectors, axis=1)
    directions = vectors / np.where(norms == 0, 1, norms)[:, None]
    random = np.random.default_rng(seed)
    first = random.integers(0, len(vectors), PAIRS)
    second = (first + random.integers(1, len(vectors), PAIRS)) % len(vectors)
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
