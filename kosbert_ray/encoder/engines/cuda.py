"""The calls that need a CUDA device. Everything else runs, and is tested, on a CPU."""

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
    """Flash attention over sequences of any length (torch.nn.attention.varlen), in fp16 and bf16 only.

    Args:
        query: ``[T, heads, head size]``.
        key, value: like ``query``, or with fewer heads, each of which serves a group of query heads.
        offsets: int32 ``[sequences + 1]``.
        longest: an upper bound of the sequences' lengths.
        scaling: factor on the scores.
        reach: number of positions to the left and to the right that are attended to; -1 for all.

    Returns:
        ``[T, heads, head size]``.
    """
    from torch.nn.attention.varlen import varlen_attn

    # num_splits=1 keeps a row's sum in one block, so that a sequence's vector does not depend on its neighbours.
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
    """Copies an array to the GPU asynchronously, through pinned memory."""
    return torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)


def to_host(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Copies a tensor from the GPU, and waits for this copy only, not for work that other threads have queued."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    found: npt.NDArray[Any] = host.numpy()
    return found


def memory_of(run: Callable[[], object]) -> tuple[int, int]:
    """Returns the bytes that ``run`` allocates at its peak, and the bytes that are free."""
    run()  # warm up: workspaces and kernels are allocated once
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, torch.cuda.mem_get_info()[0]


def empty_cache() -> None:
    """Returns cached memory of the allocator to the device."""
    torch.cuda.empty_cache()
