"""Imports FAISS, or says how to install it."""

from __future__ import annotations

from kosbert_ray.errors import UsageError

try:
    import faiss
    from faiss.contrib.ondisk import merge_ondisk
except ImportError as error:
    raise UsageError("an index needs FAISS; pip install 'kosbert-ray[faiss]'") from error

__all__ = ["faiss", "merge_ondisk"]
