"""The head of a masked language model, and SPLADE's pooling of its logits.

A batch's logits would take vocabulary x tokens numbers: 0.5 GB for 4,096 tokens of a vocabulary of 32,000. They are
computed for a block of tokens at a time, reduced to a vector for each sequence, and stored sparsely.

Source: Formal et al. 2021, "SPLADE v2" (arXiv:2109.10086), max; 2107.05720, sum; 2504.14839, the second logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from kosbert_ray.model.vector_heads import Splade
from kosbert_ray.vectors.sparse import SparseVectors

# Of logits, or of activations.
BLOCK_BYTES = {"cpu": 64 * 2**20, "mps": 128 * 2**20, "cuda": 512 * 2**20}

LogitsHead = Callable[[torch.Tensor], torch.Tensor]


class _Given(torch.nn.Module):
    """Stands for the transformer below a head: returns what it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=inputs_embeds)


def take_head(model: Any) -> tuple[Any, LogitsHead]:
    """Splits a masked language model into its transformer, and its head: hidden states ``[T, h]`` to logits ``[T, V]``."""
    body = model.base_model
    setattr(model, model.base_model_prefix, _Given())

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(inputs_embeds=hidden[None]).logits[0]
        return logits

    return body, head


def splade(
    hidden: torch.Tensor, groups: Sequence[tuple[int, int, int]], head: LogitsHead, pooling: Splade
) -> SparseVectors:
    """Pools the hidden states of a batch.

    Args:
        hidden: ``[T, h]``.
        groups: runs of equal-length sequences; see :class:`Batch`.
        head: gives the logits of hidden states.
        pooling: how logits are pooled.

    Returns:
        A vector for each sequence.
    """
    block = block_rows(hidden, pooling.dimension)
    rows = _pooled(hidden, groups, head, pooling, block)
    return SparseVectors.empty().joined([positive(some.float()).strongest(pooling.limit) for some in rows])


def block_rows(like: torch.Tensor, width: int) -> int:
    """Returns how many rows of ``width`` float32 numbers are computed at a time on the device of ``like``."""
    return max(1, BLOCK_BYTES[like.device.type] // (4 * width))


def positive(rows: torch.Tensor) -> SparseVectors:
    """Returns the numbers above 0 of float32 ``[n, V]``. On a GPU they are found there: few of them have to be copied."""
    if rows.device.type == "cpu":
        return SparseVectors.of_rows(rows.numpy())
    at, indices = (rows > 0).nonzero(as_tuple=True)
    values, finite = rows[at, indices], rows.isfinite().all(1)
    return SparseVectors.of_coordinates(*(part.cpu().numpy() for part in (at, indices, values, finite)))


def _pooled(
    hidden: torch.Tensor, groups: Sequence[tuple[int, int, int]], head: LogitsHead, pooling: Splade, block: int
) -> Iterator[torch.Tensor]:
    """Yields vectors ``[sequences, V]``, in order."""
    summed = pooling.strategy == "sum"
    for start, count, length in groups:
        step = max(1, block // length)
        for first in range(0, count, step):
            sequences = min(step, count - first)
            begin, tokens = start + first * length, sequences * length
            rows: torch.Tensor | None = None
            for part in hidden[begin : begin + tokens].split(max(block, tokens) if length <= block else block):
                logits = head(part)
                logits = logits.view(sequences, -1, logits.shape[-1])
                found = _activated(logits.float(), pooling.activation).sum(1) if summed else logits.amax(1)
                if rows is not None:
                    found = rows + found if summed else torch.maximum(rows, found)
                rows = found
            assert rows is not None
            # Logarithms grow with their numbers, so the largest is found first.
            yield rows if summed else _activated(rows.float(), pooling.activation)


def _activated(logits: torch.Tensor, activation: str) -> torch.Tensor:
    found = logits.relu().log1p()
    return found.log1p() if activation == "log1p_relu" else found
