"""Agreement of two models on which texts are similar. Their vectors may differ in dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.arithmetic import unit

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two models on the same texts.

    Attributes:
        rows: number of texts.
        k: neighbours compared per text.
        overlap: share of a text's ``k`` nearest neighbours that both models have in common, averaged over the texts.
        same_nearest: share of the texts with the same nearest neighbour in both models.
        correlation: Pearson correlation of the models' cosines, over all pairs that are neighbours in either model.
        cosine: mean cosine between a text's two vectors; None if the dimensions differ.
    """

    rows: int
    k: int
    overlap: float
    same_nearest: float
    correlation: float
    cosine: float | None


def agreement(first: Matrix, second: Matrix, k: int) -> Agreement:
    """Compares each text's nearest neighbours in two models.

    Args:
        first: vectors of one model, float32 ``[n, d]``.
        second: vectors of the other model for the same texts, float32 ``[n, e]``.
        k: number of neighbours, reduced to ``n - 1`` if there are fewer texts.
    """
    one, other = unit(first), unit(second)
    k = min(k, len(one) - 1)
    similarities = one @ one.T, other @ other.T
    for matrix in similarities:
        np.fill_diagonal(matrix, -np.inf)
    near_one, near_other = (np.argsort(-matrix, axis=1, kind="stable")[:, :k] for matrix in similarities)
    shared = (near_one[:, :, None] == near_other[:, None, :]).any(2)
    near = np.concatenate([near_one, near_other], 1)
    cosines = np.stack([np.take_along_axis(matrix, near, 1).ravel() for matrix in similarities])
    same_dimension = first.shape[1] == second.shape[1]
    return Agreement(
        rows=len(one),
        k=k,
        overlap=float(shared.mean()),
        same_nearest=float((near_one[:, 0] == near_other[:, 0]).mean()),
        correlation=float(np.corrcoef(cosines)[0, 1]),
        cosine=float((one * other).sum(1).mean()) if same_dimension else None,
    )
