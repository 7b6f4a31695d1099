"""Resolves ``encoder.device`` and ``encoder.precision`` on this machine. Loads torch only where there may be a GPU."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from kosbert_ray.encoder.options import Device, Precision, visible_gpus
from kosbert_ray.errors import UsageError

BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of a CPU that multiplies bf16 natively


def pick_device(device: Device) -> Device:
    """Returns the device to compute on; "auto" is the first of cuda, mps and cpu that is present.

    Raises:
        UsageError: the requested device is not present.
    """
    if device == "cpu" or (device == "auto" and not visible_gpus() and sys.platform != "darwin"):
        return "cpu"
    import torch

    present: dict[Device, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, here in present.items() if here)
    if not present[device]:
        raise UsageError(f"encoder.device: there is no {device} device here; use auto or cpu")
    return device


def pick_precision(precision: Precision, device: str) -> str:
    """Returns the precision to compute in.

    "auto" is bf16 if the hardware multiplies it natively; else fp16 on a GPU with tensor cores (V100, T4), whose fp32 is
    several times slower; else fp32.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        return "bf16" if has_native_bf16() else "fp32"
    if device == "cuda":
        import torch

        generation = torch.cuda.get_device_capability()[0]
        return "bf16" if generation >= 8 else "fp16" if generation == 7 else "fp32"
    return "fp32"


def device_memory(device: str, limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Returns the bytes of memory of a GPU, or of this machine or container.

    Args:
        device: "cuda", "mps" or "cpu".
        limit: the memory limit of this process's container (cgroup version 2).
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[1])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max"
        memory = min(memory, int(limit.read_text()))
    return memory


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns True if the CPU multiplies bf16 natively.

    Args:
        cpuinfo: where Linux lists the CPU's features; elsewhere torch is asked.
    """
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        import torch

        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag) for flag in BF16_FLAGS)
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(flag in flags for flag in BF16_FLAGS)
