"""All that only a CUDA device can do, and nothing else: what a machine without one cannot run is in here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    scaling: float | None,
    reach: tuple[int, int],
) -> torch.Tensor:
    """Flash attention over sequences of any lengths (torch.nn.attention.varlen): fp16 and bf16 only.

    Args:
        query: ``[T, heads, head size]``.
        key, value: the same, or of fewer heads, each of which serves a group of the query's.
        offsets: int32 ``[sequences + 1]``.
        longest: as long as the longest sequence at the least.
        scaling: factor on the scores.
        reach: positions to the left and right that are seen; -1 for all.

    Returns:
        ``[T, heads, head size]``.
    """
    from torch.nn.attention.varlen import varlen_attn

    # num_splits=1: the sum of a row is not split among blocks, so a sequence's vector does not depend on its neighbours.
    wanted: dict[str, Any] = {"scale": scaling, "window_size": reach, "num_splits": 1}
    known = inspect.signature(varlen_attn).parameters
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in known:
        wanted["enable_gqa"] = True
    elif groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if "num_splits" not in known:  # torch 2.11
        del wanted["num_splits"]
    attended = varlen_attn(query, key, value, offsets, offsets, longest, longest, **wanted)
    assert isinstance(attended, torch.Tensor)
    return attended


def to_device(array: npt.NDArray[Any]) -> torch.Tensor:
    """To the GPU from pinned memory: the call returns while the copy goes on."""
    return torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)


def to_host(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """From the GPU into pinned memory; waits for this tensor only, not for what another thread has queued behind it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    found: npt.NDArray[Any] = host.numpy()
    return found


def memory_of(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes that ``run`` takes at its most beyond what is taken already, and bytes that are free."""
    run()  # what is made once (workspaces, kernels) does not count
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, torch.cuda.mem_get_info()[0]


def empty_cache() -> None:
    """Gives back what the allocator keeps for reuse."""
    torch.cuda.empty_cache()
