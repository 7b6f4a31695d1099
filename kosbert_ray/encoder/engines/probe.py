"""Random batches to try a model with, and the comparison of two ways to compute their vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kosbert_ray.encoder.engines.model_info import text_config, vocabulary_of
from kosbert_ray.encoder.packing import Batch, random_batch
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.errors import ModelError

PROBE_LENGTHS = (3, 3, 7, 24)


def probe(spec: ModelSpec, model: Any) -> Batch:
    """Returns a batch of a few random sequences, one of them longer than the model's attention window if it has one."""
    window = int(getattr(text_config(model), "sliding_window", None) or 0)
    lengths = [*PROBE_LENGTHS, *([2 * window] if 0 < 2 * window <= spec.max_seq_length else [])]
    lengths = [min(length, spec.max_seq_length) for length in lengths]
    return random_batch(lengths, vocabulary_of(model))


def singles(batch: Batch) -> list[Batch]:
    """Splits a batch into batches of one sequence each."""
    found = []
    for number, ids in enumerate(np.split(batch.ids, batch.offsets[1:-1])):
        texts = batch.texts[number : number + 1]
        found.append(Batch(ids, np.arange(len(ids), dtype=np.int64), ((0, 1, len(ids)),), texts))
    return found


def agreement_of(one: torch.Tensor, other: torch.Tensor, spec: ModelSpec, precision: str) -> float:
    """Returns the least cosine between the rows of two matrices ``[n, d]``, leaving out rows with NaN or Inf.

    Raises:
        ModelError: every row has NaN or Inf.
    """
    finite = torch.isfinite(one).all(1) & torch.isfinite(other).all(1)
    if not finite.any():
        raise ModelError(f"{spec.folder}: every vector is NaN or Inf in {precision}; use another precision")
    return float(torch.cosine_similarity(one[finite], other[finite]).min())
