"""Attention over packed sequences, plugged into transformers' encoders without changing their code.

``AttentionInterface.register`` makes ``attn_implementation="packed"`` call :func:`packed_attention`. No mask function is
registered under that name, so transformers builds no mask. The batch's :class:`Layout` is passed as a keyword argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from kosbert_ray.encoder.engines import cuda

NAME = "packed"


@dataclass(frozen=True)
class Layout:
    """Sequence boundaries in a packed batch: groups of equal length, or offsets for CUDA.

    Attributes:
        groups: ``(start, count, length)`` of each run of equal-length sequences.
        offsets: int32 ``[sequences + 1]`` on the device, or None to use ``groups``.
        longest: an upper bound of the sequences' lengths, with ``offsets``.
    """

    groups: tuple[tuple[int, int, int], ...] = ()
    offsets: torch.Tensor | None = None
    longest: int = 0


def register() -> None:
    """Registers ``attn_implementation="packed"`` with transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence of a packed batch.

    Args:
        module: the attention layer; its ``is_causal`` applies if the argument is None.
        query: ``[1, heads, T, head size]``.
        key, value: like ``query``, or with fewer heads, each of which serves a group of query heads.
        attention_mask: None, because transformers builds no mask for this attention.
        scaling: factor on the scores.
        sliding_window: a position attends to those less than this far away (ModernBERT's local layers).
        is_causal: whether a position attends to earlier positions only.
        layout: boundaries of the sequences.
        others: further arguments of transformers' interface; those that change the scores are refused.

    Returns:
        ``[1, T, heads, head size]`` and no attention weights.
    """
    assert layout is not None and attention_mask is None
    refuse_others(others)
    causal = causality(module, is_causal)
    grouped = key.shape[1] != query.shape[1]
    if layout.offsets is not None:
        left = -1 if sliding_window is None else sliding_window - 1
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        reach = (left, 0 if causal else left)
        return cuda.varlen_attention(q, k, v, layout.offsets, layout.longest, scaling, reach).unsqueeze(0), None
    heads, total = query.shape[1:3]
    out = torch.empty(1, total, heads, value.shape[-1], dtype=query.dtype, device=query.device)
    for start, count, length in layout.groups:
        stop = start + count * length
        q, k, v = (
            x[0, :, start:stop].view(x.shape[1], count, length, x.shape[-1]).transpose(0, 1) for x in (query, key, value)
        )
        mask = window_mask(length, sliding_window, causal, query.device)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scaling, is_causal=causal and mask is None, enable_gqa=grouped
        )
        out[0, start:stop].view(count, length, heads, value.shape[-1]).copy_(attended.transpose(1, 2))
    return out, None


def refuse_others(others: dict[str, Any]) -> None:
    """Raises NotImplementedError for an argument that changes the attention scores and is not supported."""
    for name in ("position_bias", "softcap", "s_aux"):
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")


def causality(module: torch.nn.Module, is_causal: bool | None) -> bool:
    """Returns ``is_causal``, or the layer's own setting if that is None."""
    return bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)


def window_mask(length: int, sliding_window: int | None, causal: bool, device: torch.device) -> torch.Tensor | None:
    """Returns :func:`reach_mask`, or None if every position is within the window."""
    if sliding_window is None or length <= sliding_window:
        return None
    return reach_mask(length, sliding_window, causal, device)


def reach_mask(length: int, sliding_window: int | None, causal: bool, device: torch.device) -> torch.Tensor:
    """Returns bool ``[length, length]``, true where the row's position attends to the column's."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    if sliding_window is None:
        return distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    near = distance.abs() < sliding_window
    return near & (distance >= 0) if causal else near
