"""Projection of vectors to two dimensions for a scatter plot, and of sparse vectors to a few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.similarity import sparse_directions
from kosbert_ray.vectors.sparse import SparseVectors

COMPONENTS = 50  # principal components passed to t-SNE; the rest is mostly noise and slow
PERPLEXITY = 30.0
ITERATIONS = 500  # twice the early exaggeration; a thousand look the same
MIN_ROWS = 5  # too few neighbours for t-SNE below this


def project(vectors: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float32]:
    """Projects float32 ``[n, d]`` to float32 ``[n, 2]``: PCA, then t-SNE, on unit-length vectors. Deterministic.

    Fewer than ``MIN_ROWS`` vectors, and vectors that differ in one dimension at most, are placed in a row.

    Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    count, dimension = vectors.shape
    if count < MIN_ROWS or not np.ptp(vectors, axis=0).any():
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    reduced = PCA(min(COMPONENTS, count, dimension), random_state=seed).fit_transform(normalize(vectors))
    if dimension == 1:
        return np.concatenate([reduced, np.zeros((count, 1))], axis=1).astype(np.float32)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed).fit_transform(reduced)
    return np.asarray(points, np.float32)


def reduce_sparse(vectors: SparseVectors, seed: int = 0) -> npt.NDArray[np.float32]:
    """Projects sparse vectors, scaled to length 1, to at most ``COMPONENTS`` dimensions: float32 ``[n, d]``. Deterministic.

    Only the dimensions in use take memory. If there are few, they are returned as they are. Empty vectors become 0.

    Source: Deerwester et al. 1990, "Indexing by Latent Semantic Analysis".
    """
    from sklearn.decomposition import TruncatedSVD

    matrix = sparse_directions(vectors)
    if matrix.shape[1] <= COMPONENTS:
        return np.asarray(matrix.toarray(), np.float32)
    components = min(COMPONENTS, len(vectors))
    reduced = np.asarray(TruncatedSVD(components, random_state=seed).fit_transform(matrix), np.float32)
    reduced[vectors.counts == 0] = 0  # rounding leaves other numbers there
    return reduced
