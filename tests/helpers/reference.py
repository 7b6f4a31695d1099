"""sentence-transformers' vectors, and how near ours are to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of each row of ``a`` to the same row of ``b``."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def require_same_sparse(found: np.ndarray, expected: np.ndarray) -> None:
    """Sparse vectors, as matrices, are within 1e-5 of those expected, and have the same numbers above 1e-4."""
    assert np.abs(found - expected).max() <= 1e-5
    assert ((found > 1e-4) == (expected > 1e-4)).mean() > 0.9999


def reference(folder: Path, texts: list[str], **kwargs: Any) -> np.ndarray:
    """The vectors of sentence-transformers."""
    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=64, **kwargs)
