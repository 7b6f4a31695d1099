"""Random batches to try a model with, and the comparison of two ways to compute their vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kosbert_ray.encoder.engines.base import AGREEMENT, PrecisionUnfit
from kosbert_ray.encoder.engines.model_info import text_config, vocabulary_of
from kosbert_ray.encoder.packing import Batch, random_batch
from kosbert_ray.model.spec import ModelSpec

PROBE_LENGTHS = (3, 3, 7, 24)
# In half precision another order of the same sums may be this much farther from fp32 than transformers' own order.
ROUNDING = 1.5
LEAST_DEVIATION = 1e-4


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
        PrecisionUnfit: every row has NaN or Inf.
    """
    finite = torch.isfinite(one).all(1) & torch.isfinite(other).all(1)
    if not finite.any():
        raise PrecisionUnfit(f"{spec.folder}: every vector is NaN or Inf in {precision}; use another precision")
    return float(torch.cosine_similarity(one[finite], other[finite]).min())


@dataclass(frozen=True)
class Yardstick:
    """Decides whether another way to compute vectors differs by more than rounding.

    The rounding of half precision grows with the depth of a model. So where the vectors in fp32 are known, the deviation
    from them is compared with that of transformers' own computation in the same precision.

    Attributes:
        spec: the model.
        precision: of the computation.
        alone: each text's vector computed alone by transformers' own attention, float32 ``[n, d]``.
        exact: the same in fp32; None if unknown.
    """

    spec: ModelSpec
    precision: str
    alone: torch.Tensor
    exact: torch.Tensor | None

    def disagreement(self, found: torch.Tensor) -> float | None:
        """Returns the least cosine of ``found`` to the expected vectors if it is too low, else None."""
        if self.exact is None:
            agreement = agreement_of(found, self.alone, self.spec, self.precision)
            return agreement if agreement < AGREEMENT[self.precision] else None
        agreement, theirs = (agreement_of(one, self.exact, self.spec, self.precision) for one in (found, self.alone))
        return agreement if 1 - agreement > max(LEAST_DEVIATION, ROUNDING * (1 - theirs)) else None


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Computes a model in fp32 until the block ends, converting the weights of one module at a time.

    A copy of the whole model in fp32 would take twice its memory.
    """
    held: dict[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def convert(module: torch.nn.Module, *_: object) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        held[module] = [(tensor, tensor.data) for tensor in own if tensor.dtype in (torch.bfloat16, torch.float16)]
        for tensor, data in held[module]:
            tensor.data = data.float()

    def restore(module: torch.nn.Module, *_: object) -> None:
        for tensor, data in held.pop(module, ()):
            tensor.data = data

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(convert), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in [*held]:
            restore(module)
