"""Token sequences whose ids name their sequence."""

from __future__ import annotations

import numpy as np

from kosbert_ray.encoder.packing import Tokens


def tokens(lengths: list[int]) -> Tokens:
    """Sequences of these lengths; number n is n repeated, so that a mix-up shows."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16)
    rows = np.arange(len(lengths), dtype=np.int32)
    return Tokens(ids, np.array(lengths, np.int32), rows, np.zeros(len(lengths), np.int32))
