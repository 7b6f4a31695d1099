"""Packed attention is plain attention, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from kosbert_ray.encoder.engines.attention import Layout, packed_attention


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
    """The formula of Vaswani et al. (2017), with a band mask: ``[heads, length, size]`` in and out."""
    scores = q @ k.transpose(-1, -2) * scaling
    if window is not None:
        at = torch.arange(q.shape[1])
        scores = scores.masked_fill((at[:, None] - at[None, :]).abs() >= window, float("-inf"))
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_each_sequence_attends_to_itself_within_its_window(window: int | None) -> None:
    torch.manual_seed(0)
    lengths = [1, 1, 4, 4, 4, 9]
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8)
    layout = Layout(((0, 2, 1), (2, 3, 4), (14, 1, 9)))
    out, weights = packed_attention(None, q, k, v, None, scaling=0.3, sliding_window=window, layout=layout)
    assert weights is None
    start = 0
    for length in lengths:
        inside = slice(start, start + length)
        expected = plain(q[0, :, inside], k[0, :, inside], v[0, :, inside], 0.3, window)
        torch.testing.assert_close(out[0, inside].transpose(0, 1), expected)
        start += length
