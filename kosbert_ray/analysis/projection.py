"""Projection of vectors to two dimensions for a scatter plot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

COMPONENTS = 50  # principal components passed to t-SNE; the rest is mostly noise and slow
PERPLEXITY = 30.0
ITERATIONS = 500  # twice the early exaggeration; a thousand look the same
MIN_ROWS = 5  # too few neighbours for t-SNE below this


def project(vectors: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float32]:
    """Projects float32 ``[n, d]`` to float32 ``[n, 2]``: PCA, then t-SNE, on unit-length vectors. Deterministic.

    Fewer than ``MIN_ROWS`` vectors, and vectors of one dimension, are placed in a row.

    Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    count, dimension = vectors.shape
    if count < MIN_ROWS:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    reduced = PCA(min(COMPONENTS, count, dimension), random_state=seed).fit_transform(normalize(vectors))
    if dimension == 1:
        return np.concatenate([reduced, np.zeros((count, 1))], axis=1).astype(np.float32)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed).fit_transform(reduced)
    return np.asarray(points, np.float32)
