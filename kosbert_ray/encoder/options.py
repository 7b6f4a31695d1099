"""How to compute: apart from ``model``, so that a driver can say it without importing torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from kosbert_ray.encoder.engines.table import ENGINES, require_supported

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Device = Literal["auto", "cuda", "mps", "cpu"]
if TYPE_CHECKING:
    Engine: TypeAlias = str
else:  # what the option accepts: the names in the table
    Engine = Literal[(*ENGINES, "auto")]


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
    """Checks that the options fit together, without torch and without the model.

    Raises:
        UsageError: no engine supports the combination on any machine.
    """
    require_supported(options.engine, options.device, options.precision, options.compile)


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
