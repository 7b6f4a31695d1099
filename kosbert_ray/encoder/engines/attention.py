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
BLOCK = 1024  # rows of a window's mask
# Arguments of transformers' attention interface that change no score.
HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "token_type_ids",
        "use_cache",
    }
)


@dataclass(frozen=True)
class Layout:
    """Sequence boundaries in a packed batch: groups of equal length, or offsets for CUDA.

    Attributes:
        groups: ``(start, count, length)`` of each run of equal-length sequences.
        offsets: int32 ``[sequences + 1]`` on the device, or None to use ``groups``.
        longest: an upper bound of the sequences' lengths, with ``offsets``.
        attended: number of tokens that are attended to, in a batch of one sequence; None for all.
    """

    groups: tuple[tuple[int, int, int], ...] = ()
    offsets: torch.Tensor | None = None
    longest: int = 0
    attended: int | None = None


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
        to = out[0, start:stop].view(count, length, heads, value.shape[-1])
        if layout.attended is not None:
            k, v = k[:, :, : layout.attended], v[:, :, : layout.attended]
        reached = k.shape[2]
        window = None if sliding_window is None or length <= sliding_window else sliding_window
        if window is None:
            attended = F.scaled_dot_product_attention(q, k, v, scale=scaling, is_causal=causal, enable_gqa=grouped)
            to.copy_(attended.transpose(1, 2))
            continue
        positions = torch.arange(length, device=query.device)
        for first in range(0, length, BLOCK):  # a mask of all of a long text would take length² bytes
            last = min(first + BLOCK, length)
            left, right = max(0, first - window + 1), min(reached, last if causal else last + window - 1)
            mask = reach_mask(positions[first:last], positions[left:right], window, causal)
            part = (q[:, :, first:last], k[:, :, left:right], v[:, :, left:right])
            attended = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scaling, enable_gqa=grouped)
            to[:, first:last].copy_(attended.transpose(1, 2))
    return out, None


def refuse_others(others: dict[str, Any]) -> None:
    """Raises NotImplementedError for an argument that may change the attention scores."""
    for name, value in others.items():
        if value is not None and name not in HARMLESS and not (name == "dropout" and value == 0):
            raise NotImplementedError(f"attention with {name}")


def causality(module: torch.nn.Module, is_causal: bool | None) -> bool:
    """Returns ``is_causal``, or the layer's own setting if that is None."""
    return bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)


def reach_mask(at: torch.Tensor, other: torch.Tensor, window: int | None, causal: bool) -> torch.Tensor:
    """Returns bool ``[n, m]``, true where a position attends to another one.

    Args:
        at: positions that attend, int64 ``[n]``.
        other: positions that are attended to, int64 ``[m]``.
        window: a position attends to those less than this far away; None for all.
        causal: whether it attends to earlier positions only.
    """
    distance = at[:, None] - other[None, :]
    reached = torch.ones_like(distance, dtype=torch.bool) if window is None else distance.abs() < window
    return reached & (distance >= 0) if causal else reached
