"""How to compute: apart from ``model``, so that a driver can say it without importing torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

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


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
