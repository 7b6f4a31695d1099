"""How to compute: apart from ``model``, so that a driver can say it without importing torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kosbert_ray.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Engine = Literal["torch", "openvino", "auto"]
Device = Literal["auto", "cuda", "mps", "cpu"]


@dataclass(frozen=True)
class EncoderOptions:
    """How to compute, which never changes what is computed beyond rounding.

    ``threads`` (CPU) and ``token_budget`` (tokens in a batch): None for the machine's own. ``engine`` "auto" is the faster
    one on this machine, at the precision asked for. ``compile`` compiles the model with torch.compile, on a GPU.
    """

    precision: Precision = "auto"
    device: Device = "auto"
    threads: int | None = None
    token_budget: int | None = None
    engine: Engine = "torch"
    compile: bool = False


def require_possible(options: EncoderOptions) -> None:
    """Raises UsageError for options that do not go together on any machine; needs neither torch nor the model.

    Args:
        options: combinations with a device are checked where it is not "auto".
    """
    device, precision, engine = options.device, options.precision, options.engine
    if precision == "fp16" and device == "cpu":
        raise UsageError("encoder.precision: fp16 is for GPUs; use bf16 or fp32 on a CPU")
    if precision == "int8" and device in ("cuda", "mps"):
        raise UsageError(f"encoder.precision: int8 is for CPUs, and the device is {device}")
    if precision == "int8" and engine == "torch":
        raise UsageError("encoder.precision: int8 needs encoder.engine=openvino")
    if precision == "fp16" and engine == "openvino":
        raise UsageError("encoder.precision: fp16 is for GPUs, and openvino for CPUs; use bf16 or fp32")
    if engine == "openvino" and device in ("cuda", "mps"):
        raise UsageError(f"encoder.engine: openvino is for CPUs, and the device is {device}")
    if options.compile and device in ("cpu", "mps"):
        raise UsageError(f"encoder.compile: torch.compile gains on GPUs only, and the device is {device}")


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """CPU cores this process may use: those it may run on, or fewer where a container's quota is below them.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files (``cpu.max``), and version 1's
    ``cpu.cfs_quota_us``.

    Args:
        cgroups: where cgroups are mounted.
        own: the list of this process's.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(cgroups, own):
        cores = min(cores, max(1, int(quota)))
    return cores


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The CPU quotas of this process's cgroup and those around it, in cores."""
    folders = [cgroups]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::"):
                group = cgroups / line.removeprefix("0::").strip("/")
                folders += [group, *(parent for parent in group.parents if cgroups in parent.parents)]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)
    with contextlib.suppress(OSError, ValueError):
        quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        if float(quota) > 0:
            yield float(quota) / float((cgroups / "cpu" / "cpu.cfs_period_us").read_text())
