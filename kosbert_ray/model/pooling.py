"""Pooling: token vectors to sentence vectors, in float32 whatever the transformer computes in.

To add a pooling mode of sentence-transformers, add an entry to ``POOLING``. The table loads without torch, because reading
a model folder checks modes against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Int64: TypeAlias = npt.NDArray[np.int64]
    ToDevice: TypeAlias = Callable[[Int64], torch.Tensor]


@dataclass(frozen=True)
class Segments:
    """Sequences of any lengths, one after another.

    Attributes:
        tokens: token vectors ``[T, h]``.
        lengths: int64 ``[sequences]``, on the device of ``tokens``.
        firsts: int64 ``[sequences]``, the position of each sequence's first token, on the same device.
        left_out: int64 ``[sequences]``, the number of tokens left out before the first, on the same device.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    firsts: torch.Tensor
    left_out: torch.Tensor


@dataclass(frozen=True)
class Mode:
    """One pooling mode, in two forms that give the same vectors.

    Attributes:
        packed: pools sequences of equal length, ``[n, length, h]`` to float32 ``[n, h]``; the second argument is the number
            of tokens left out before the first.
        by_offsets: pools sequences of any lengths to float32 ``[sequences, h]``.
    """

    packed: Callable[[torch.Tensor, int], torch.Tensor]
    by_offsets: Callable[[Segments], torch.Tensor]


def _sum(power: float) -> Mode:
    """Builds the mode that divides the sum of the token vectors by ``length ** power``."""

    def packed(tokens: torch.Tensor, _left_out: int) -> torch.Tensor:
        import torch

        pooled: torch.Tensor = tokens.sum(dim=1, dtype=torch.float32) / (tokens.shape[1] ** power)
        return pooled

    def by_offsets(segments: Segments) -> torch.Tensor:
        import torch

        total = torch.segment_reduce(segments.tokens.float(), "sum", lengths=segments.lengths, unsafe=True)
        return total / segments.lengths[:, None].float().pow(power)

    return Mode(packed, by_offsets)


def _max_by_offsets(segments: Segments) -> torch.Tensor:
    import torch

    return torch.segment_reduce(segments.tokens.float(), "max", lengths=segments.lengths, unsafe=True)


def _weighted_mean(tokens: torch.Tensor, left_out: int) -> torch.Tensor:
    """Weights each token by its position, counted from 1. Source: SGPT, Muennighoff 2022 (arXiv:2202.08904)."""
    import torch

    positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32) + (left_out + 1)
    return (tokens.float() * positions[:, None]).sum(dim=1) / positions.sum()


def _weighted_mean_by_offsets(segments: Segments) -> torch.Tensor:
    import torch

    lengths = segments.lengths
    begins = segments.firsts - segments.left_out
    positions = torch.arange(len(segments.tokens), device=lengths.device) - torch.repeat_interleave(
        begins, lengths, output_size=len(segments.tokens)
    )
    weights = (positions + 1)[:, None].float()
    total = torch.segment_reduce(segments.tokens.float() * weights, "sum", lengths=lengths, unsafe=True)
    return total / torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True)


def _last_by_offsets(segments: Segments) -> torch.Tensor:
    return segments.tokens[segments.firsts + segments.lengths - 1].float()


POOLING: dict[str, Mode] = {
    "cls": Mode(lambda tokens, _: tokens[:, 0].float(), lambda segments: segments.tokens[segments.firsts].float()),
    "lasttoken": Mode(lambda tokens, _: tokens[:, -1].float(), _last_by_offsets),
    "max": Mode(lambda tokens, _: tokens.amax(dim=1).float(), _max_by_offsets),
    "mean": _sum(1.0),
    "mean_sqrt_len_tokens": _sum(0.5),
    "weightedmean": Mode(_weighted_mean, _weighted_mean_by_offsets),
}


def pool_block(tokens: torch.Tensor, modes: tuple[str, ...], left_out: int = 0) -> torch.Tensor:
    """Pools sequences of equal length.

    Args:
        tokens: token vectors ``[n, length, h]``.
        modes: keys of ``POOLING``, whose results are concatenated.
        left_out: number of tokens left out before the first.

    Returns:
        float32 ``[n, h * len(modes)]``.
    """
    import torch

    return torch.cat([POOLING[mode].packed(tokens, left_out) for mode in modes], dim=1)


def pool(hidden: torch.Tensor, groups: tuple[tuple[int, int, int], ...], modes: tuple[str, ...], skip: int) -> torch.Tensor:
    """Pools a packed batch, group by group.

    Args:
        hidden: token vectors ``[T, h]``.
        groups: ``(start, count, length)`` of each run of equal-length sequences.
        modes: keys of ``POOLING``, whose results are concatenated.
        skip: leading tokens to leave out (a prompt with ``include_prompt: false``).

    Returns:
        float32 ``[sequences, h * len(modes)]``.
    """
    import torch

    pooled = []
    for start, count, length in groups:
        left_out = min(skip, length - 1)
        tokens = hidden[start : start + count * length].view(count, length, -1)[:, left_out:]
        pooled.append(pool_block(tokens, modes, left_out))
    return torch.cat(pooled)


def pool_spans(hidden: torch.Tensor, starts: Int64, lengths: Int64, modes: tuple[str, ...]) -> torch.Tensor:
    """Pools spans of a packed batch, one by one.

    Args:
        hidden: token vectors ``[T, h]``.
        starts, lengths: int64 ``[spans]``, the first token of each span and the number of its tokens.
        modes: keys of ``POOLING``, whose results are concatenated.

    Returns:
        float32 ``[spans, h * len(modes)]``.
    """
    import torch

    places = zip(starts.tolist(), lengths.tolist(), strict=True)
    return torch.cat([pool_block(hidden[None, start : start + length], modes) for start, length in places])


def pool_by_offsets(
    hidden: torch.Tensor,
    offsets: npt.NDArray[np.int32],
    modes: tuple[str, ...],
    skip: int,
    to_device: ToDevice,
) -> torch.Tensor:
    """Pools a packed batch on a GPU, without a kernel launch per length and without waiting for the device.

    Args:
        hidden: token vectors ``[T', h]``; those from ``offsets[-1]`` on are ignored.
        offsets: int32 ``[sequences + 1]``, the start of each sequence.
        modes: keys of ``POOLING``, whose results are concatenated.
        skip: leading tokens to leave out.
        to_device: copies an array to the device of ``hidden``.

    Returns:
        float32 ``[sequences, h * len(modes)]``.
    """
    import numpy as np

    lengths = np.diff(offsets).astype(np.int64)
    left_out = np.minimum(skip, lengths - 1)
    lengths -= left_out
    starts = offsets[:-1].astype(np.int64) + left_out
    tokens = _gathered(hidden, starts, lengths, to_device) if skip else hidden[: offsets[-1]]
    return _pool_segments(tokens, lengths, left_out, modes, to_device)


def pool_spans_by_offsets(
    hidden: torch.Tensor, starts: Int64, lengths: Int64, modes: tuple[str, ...], to_device: ToDevice
) -> torch.Tensor:
    """Pools spans of a packed batch as :func:`pool_by_offsets` pools sequences; see :func:`pool_spans`."""
    import numpy as np

    tokens = _gathered(hidden, starts, lengths, to_device)
    return _pool_segments(tokens, lengths, np.zeros_like(lengths), modes, to_device)


def _gathered(hidden: torch.Tensor, starts: Int64, lengths: Int64, to_device: ToDevice) -> torch.Tensor:
    """Concatenates ``hidden[start : start + length]`` of all sequences."""
    import numpy as np

    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return hidden[to_device(np.repeat(starts, lengths) + within)]


def _pool_segments(
    tokens: torch.Tensor, lengths: Int64, left_out: Int64, modes: tuple[str, ...], to_device: ToDevice
) -> torch.Tensor:
    """Pools sequences of these lengths, one after another."""
    import numpy as np
    import torch

    segments = Segments(tokens, to_device(lengths), to_device(np.cumsum(lengths) - lengths), to_device(left_out))
    return torch.cat([POOLING[mode].by_offsets(segments) for mode in modes], dim=1)
