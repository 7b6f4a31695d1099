"""The kinds of vectors that shards can hold. To add one, write a module with a ``VectorFormat`` and list it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.multi_vector import MultiVectorFormat
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind

FORMATS: dict[Kind, Callable[[Mapping[str, Any]], Sequence[VectorFormat]]] = {
    DENSE: EmbeddingFormat.all_of,
    SPARSE: SparseFormat.all_of,
    MULTI_VECTOR: MultiVectorFormat.all_of,
}


def kinds_of(fingerprint: Mapping[str, Any]) -> tuple[Kind, ...]:
    """Returns the kinds of vectors of an output, as its fingerprint records them."""
    return tuple(fingerprint.get("vectors", (DENSE,)))


def formats_of(fingerprint: Mapping[str, Any]) -> tuple[VectorFormat, ...]:
    """Returns the formats of an output's columns of vectors, in their order.

    Raises:
        KeyError: the fingerprint lacks a field.
    """
    return tuple(item for kind in kinds_of(fingerprint) for item in FORMATS[kind](fingerprint))
