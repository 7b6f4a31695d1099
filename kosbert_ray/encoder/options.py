"""Options of the encoders and of long texts. Needs no torch, so that a driver can check them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from kosbert_ray.encoder.engines.table import ENGINES, require_supported
from kosbert_ray.settings import InWords, Section

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Device = Literal["auto", "cuda", "mps", "cpu"]
if TYPE_CHECKING:
    Engine: TypeAlias = str
else:  # what the options accept: the names in the tables
    Engine = Literal[(*ENGINES, "auto")]
LongTextPolicy = Literal["truncate", "mean", "chunk", "late"]
Splitter = Literal["words", "kiwi"]
Positive = Annotated[int, Field(gt=0)]


class EncoderOptions(Section):
    """The encoders. These options change vectors by rounding only."""

    precision: Precision = Field(
        default="auto", description="number format of the computation; int8 is for CPUs with OpenVINO"
    )
    device: Device = Field(default="auto", description="device of the encoders; by default a GPU where there is one")
    actors: Annotated[Positive | tuple[Positive, Positive] | None, InWords("integer or [min, max]")] = Field(
        default=None, description="number of encoders; by default as many as fit on the cluster, also while nodes join"
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads per encoder; by default all cores are shared out"
    )
    token_budget: Positive | None = Field(default=None, description="tokens per batch; by default it depends on the device")
    engine: Engine = Field(
        default="auto",
        description="inference engine on CPUs; auto prefers OpenVINO where it is installed and suits the model; static "
        "embedding models always take static",
    )
    compile: bool = Field(default=False, description="compile the model with torch.compile, on GPUs")

    @model_validator(mode="after")
    def _check(self) -> EncoderOptions:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError("actors: the minimum is above the maximum")
        return self


class ChunkOptions(Section):
    """Chunks of long texts, where long_text is mean, chunk or late."""

    size: Positive | None = Field(
        default=None,
        description="maximum tokens per chunk, with the special ones; by default the model's limit, and with "
        "long_text=late a quarter of it, at most 256",
    )
    overlap: int | None = Field(
        default=None, ge=0, description="tokens that a chunk shares with the previous one; by default an eighth of size"
    )
    splitter: Splitter = Field(
        default="words", description="split between words, or with kiwi between sentences (pip install 'kosbert-ray[kiwi]')"
    )
    text: bool = Field(default=False, description="also write the text of each chunk")


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


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """GPUs that this process may use, by their device nodes, without loading torch.

    Args:
        devices: where device nodes are.
    """
    count = sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))
    if not count:  # AMD's driver, or the one of Windows' Linux, has one node for all
        count = int(any((devices / name).exists() for name in ("kfd", "dxg")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if chosen is None else min(count, sum(name.strip() not in ("", "-1") for name in chosen.split(",")))


def has_gpu(options: EncoderOptions) -> bool:
    """True if an encoder with these options computes on a GPU, as far as this machine can tell."""
    return options.device == "cuda" or (options.device == "auto" and visible_gpus() > 0)


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
