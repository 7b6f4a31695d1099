"""The kinds of vectors: dense, sparse, and multi-vector (one vector per token)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Kind = Literal["dense", "sparse", "multi_vector"]

DENSE: Kind = "dense"
SPARSE: Kind = "sparse"
MULTI_VECTOR: Kind = "multi_vector"
KINDS: tuple[Kind, ...] = (DENSE, SPARSE, MULTI_VECTOR)  # also the order of their columns

METHODS: dict[Kind, str] = {DENSE: "encode", SPARSE: "encode_sparse", MULTI_VECTOR: "encode_multi_vector"}


def in_order(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Returns the kinds in the order of :data:`KINDS`, each once."""
    return tuple(kind for kind in KINDS if kind in kinds)


def named(kinds: Sequence[str]) -> str:
    """Returns the kinds for a message: "sparse and multi-vector"."""
    return " and ".join(kind.replace("_", "-") for kind in kinds)
