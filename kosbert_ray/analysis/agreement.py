"""Agreement of two models on which texts are similar. Their vectors may differ in dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 1024
EQUAL = 1e-6  # similarities that differ by less are equal but for rounding

Similarities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two models on the same texts.

    Attributes:
        rows: number of texts.
        k: neighbours compared per text.
        overlap: share of a text's ``k`` nearest neighbours that both models have in common, averaged over the texts.
        same_nearest: share of the texts with the same nearest neighbour in both models.
        correlation: Pearson correlation of the models' similarities, over all pairs that are neighbours in either model;
            None if all are equally similar in one of them.
        cosine: mean cosine between a text's two vectors; None if they differ in kind or dimension.
    """

    rows: int
    k: int
    overlap: float
    same_nearest: float
    correlation: float | None
    cosine: float | None


def agreement(first: Similarities, second: Similarities, k: int, cosine: float | None = None) -> Agreement:
    """Compares each text's nearest neighbours in two models.

    Args:
        first: similarity of each text with each text by one model, float32 ``[n, n]``; its diagonal is overwritten.
        second: the same by the other model, for the same texts.
        k: number of neighbours, reduced to ``n - 1`` if there are fewer texts.
        cosine: mean cosine between a text's two vectors, if there is such a thing.
    """
    k = min(k, len(first) - 1)
    similarities = first, second
    for matrix in similarities:
        np.fill_diagonal(matrix, -np.inf)
    near_one, near_other = (np.argsort(-matrix, axis=1, kind="stable")[:, :k] for matrix in similarities)
    shared, pairs = 0, []
    for start in range(0, len(first), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        in_one, in_other = (_members(near[block], len(first)) for near in (near_one, near_other))
        shared += int((in_one & in_other).sum())
        either = in_one | in_other
        pairs.append([matrix[block][either] for matrix in similarities])
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return Agreement(
        rows=len(first),
        k=k,
        overlap=shared / (len(first) * k),
        same_nearest=float((near_one[:, 0] == near_other[:, 0]).mean()),
        correlation=float(np.corrcoef(one, other)[0, 1]) if min(np.ptp(one), np.ptp(other)) > EQUAL else None,
        cosine=cosine,
    )


def _members(near: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """Returns which texts are among the neighbours, int64 ``[m, k]``, of each of ``m`` texts: bool ``[m, count]``."""
    found = np.zeros((len(near), count), bool)
    np.put_along_axis(found, near, True, axis=1)
    return found
