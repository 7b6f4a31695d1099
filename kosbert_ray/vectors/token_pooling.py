"""Hierarchical pooling: the token vectors of a text in fewer vectors, the means of clusters of similar ones.

Source: Clavié et al. 2024, "Reducing the Footprint of Multi-Vector Retrieval" (arXiv:2409.14683);
``HierarchicalTokenPooling`` of sentence-transformers 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.token_vectors import TokenVectors


@dataclass(frozen=True)
class TokenPooling:
    """Hierarchical pooling of the token vectors of documents.

    Attributes:
        factor: about how many vectors become one; 1 for all as they are.
        protected: number of leading vectors that are kept.
        normalize: whether to scale the vectors to length 1 afterwards.
    """

    factor: float
    protected: int = 1
    normalize: bool = True

    def __str__(self) -> str:
        return f"hierarchical {self.factor:g} protected={self.protected}" + (" normalized" if self.normalize else "")

    def __call__(self, vectors: TokenVectors) -> TokenVectors:
        """Pools the vectors of each text, which have length 1, to ``1 / factor`` as many of the same type."""
        parts = [_pooled(text.astype(np.float32), self.factor, self.protected) for text in vectors.to_list()]
        values = np.concatenate([np.empty((0, vectors.dimension), np.float32), *parts])
        if self.normalize:
            values = unit(values)
        lengths = np.array([len(part) for part in parts], np.int64)
        found = TokenVectors.of_lengths(values.astype(vectors.values.dtype), lengths)
        return replace(found, finite=vectors.finite)


def _pooled(vectors: npt.NDArray[Any], factor: float, protected: int) -> npt.NDArray[Any]:
    kept, rest = vectors[:protected], vectors[protected:]
    clusters = max(int(len(rest) // factor), 1)
    if clusters >= len(rest):
        return vectors
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = np.clip(1 - rest @ rest.T, 0, 2)
    labels = fcluster(linkage(squareform(distances, checks=False), method="ward"), t=clusters, criterion="maxclust")
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors.shape[1]), np.float32)
    np.add.at(sums, members, rest)
    return np.concatenate([kept, sums / counts[:, None]])
