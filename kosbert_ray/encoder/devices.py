"""Resolves ``encoder.device`` and ``encoder.precision`` on this machine."""

from __future__ import annotations

import torch

from kosbert_ray.encoder.options import Device, Precision
from kosbert_ray.errors import UsageError


def pick_device(device: Device) -> Device:
    """Returns the device to compute on; "auto" is the first of cuda, mps and cpu that is present.

    Raises:
        UsageError: the requested device is not present.
    """
    present: dict[Device, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, here in present.items() if here)
    if not present[device]:
        raise UsageError(f"encoder.device: there is no {device} device here; use auto or cpu")
    return device


def pick_precision(precision: Precision, device: str) -> str:
    """Returns the precision to compute in; "auto" is bf16 if the hardware multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"
