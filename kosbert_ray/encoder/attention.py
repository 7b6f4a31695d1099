"""Attention over packed sequences, plugged into transformers' encoders without touching their code.

``AttentionInterface.register`` makes ``attn_implementation="packed"`` call :func:`packed_attention`; because no mask
function is registered under that name, transformers builds no mask. The batch's :class:`Layout` rides along as a keyword.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from kosbert_ray.encoder import cuda

NAME = "packed"


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed batch lie: as equal-length groups, or, for CUDA, by their offsets.

    Attributes:
        groups: ``(start, count, length)`` of each run of equal-length sequences.
        offsets: int32 ``[sequences + 1]``, on the device; None to go by the groups.
        longest: as long as the longest sequence at the least, if there are offsets.
    """

    groups: tuple[tuple[int, int, int], ...] = ()
    offsets: torch.Tensor | None = None
    longest: int = 0


def register() -> None:
    """Makes ``attn_implementation="packed"`` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Each sequence attends to itself only.

    Args:
        _module: the attention layer (part of transformers' interface).
        query, key, value: ``[1, heads, T, head size]``.
        attention_mask: None, as no mask is built.
        scaling: factor on the scores.
        sliding_window: a position sees those less than this far away (ModernBERT's local layers).
        layout: where the sequences lie.

    Returns:
        ``[1, T, heads, head size]`` and no attention weights.
    """
    assert layout is not None and attention_mask is None
    if layout.offsets is not None:
        reach = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return cuda.varlen_attention(q, k, v, layout.offsets, layout.longest, scaling, reach).unsqueeze(0), None
    heads, total, size = query.shape[1:]
    out = torch.empty(1, total, heads, size, dtype=query.dtype, device=query.device)
    for start, count, length in layout.groups:
        stop = start + count * length
        q, k, v = (x[0, :, start:stop].view(heads, count, length, size).transpose(0, 1) for x in (query, key, value))
        mask = _window_mask(length, sliding_window, query.device)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        out[0, start:stop].view(count, length, heads, size).copy_(attended.transpose(1, 2))
    return out, None


def _window_mask(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    if sliding_window is None or length <= sliding_window:
        return None
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).abs() < sliding_window
