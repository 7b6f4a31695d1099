"""How far two sets of vectors of the same texts agree on what is like what, whatever their dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.vector_math import unit

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """What two models make of the same ``rows`` texts.

    Attributes:
        rows: how many texts.
        k: neighbours looked at of each.
        overlap: mean share of a text's ``k`` nearest that are the same in both.
        same_nearest: share of the texts whose nearest is the same in both.
        correlation: Pearson's, of the two models' cosines between a text and all that are near to it in either.
        cosine: mean cosine between a text's two vectors; None if they have other dimensions.
    """

    rows: int
    k: int
    overlap: float
    same_nearest: float
    correlation: float
    cosine: float | None


def agreement(first: Matrix, second: Matrix, k: int) -> Agreement:
    """Compares each text's neighbours among the others.

    Args:
        first: ``[n, d]``, one model's vectors.
        second: ``[n, e]``, the other's, of the same texts.
        k: how many neighbours; fewer where there are not so many texts.
    """
    one, other = unit(first), unit(second)
    k = min(k, len(one) - 1)
    likeness = one @ one.T, other @ other.T
    for matrix in likeness:
        np.fill_diagonal(matrix, -np.inf)
    near_one, near_other = (np.argsort(-matrix, axis=1, kind="stable")[:, :k] for matrix in likeness)
    shared = (near_one[:, :, None] == near_other[:, None, :]).any(2)
    near = np.concatenate([near_one, near_other], 1)
    cosines = np.stack([np.take_along_axis(matrix, near, 1).ravel() for matrix in likeness])
    same = first.shape[1] == second.shape[1]
    return Agreement(
        rows=len(one),
        k=k,
        overlap=float(shared.mean()),
        same_nearest=float((near_one[:, 0] == near_other[:, 0]).mean()),
        correlation=float(np.corrcoef(cosines)[0, 1]),
        cosine=float((one * other).sum(1).mean()) if same else None,
    )
