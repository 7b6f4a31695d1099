"""A map: vectors of many dimensions as places on a plane, neighbours near each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

COMPONENTS = 50  # kept before the map is drawn, as is usual: what is beyond is mostly noise, and takes time
PERPLEXITY = 30.0
LEAST_ROWS = 5


def project(vectors: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float32]:
    """float32 ``[n, d]`` → float32 ``[n, 2]`` by principal components and then t-SNE over cosines, the same each time.

    Source: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    count, dimension = vectors.shape
    if count < LEAST_ROWS:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    reduced = PCA(min(COMPONENTS, count, dimension), random_state=seed).fit_transform(normalize(vectors))
    found = TSNE(2, perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed).fit_transform(reduced)
    return np.asarray(found, np.float32)
