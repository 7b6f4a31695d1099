"""The engines, and what each supports. To add one, write its module (see ``base.Engine``) and add an entry here.

The table loads no engine until :func:`load` is called, so options can be checked without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kosbert_ray.errors import UsageError
from kosbert_ray.units import alternatives

if TYPE_CHECKING:
    from kosbert_ray.encoder.engines.base import Engine, EngineSettings
    from kosbert_ray.model.spec import ModelSpec


TORCH, STATIC = "torch", "static"


@dataclass(frozen=True)
class EngineEntry:
    """An engine's module and capabilities.

    Attributes:
        module: a module with a function ``load(spec, settings) -> Engine``.
        precisions: the precisions it supports, by device.
        package: the package it needs beyond kosbert-ray's own dependencies, if any.
        extra: the extra of kosbert-ray that installs ``package``.
        compiles_on: the devices on which ``encoder.compile`` applies.
    """

    module: str
    precisions: Mapping[str, tuple[str, ...]]
    package: str = ""
    extra: str = ""
    compiles_on: tuple[str, ...] = ()


ENGINES: dict[str, EngineEntry] = {
    TORCH: EngineEntry(
        "kosbert_ray.encoder.engines.torch",
        {"cuda": ("fp32", "bf16", "fp16"), "mps": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16")},
        compiles_on=("cuda",),
    ),
    "openvino": EngineEntry(
        "kosbert_ray.encoder.engines.openvino", {"cpu": ("fp32", "bf16", "int8")}, package="openvino", extra="cpu"
    ),
    STATIC: EngineEntry("kosbert_ray.encoder.engines.static", {"cpu": ("fp32",)}),
}


def load(name: str, spec: ModelSpec, settings: EngineSettings) -> Engine:
    """Loads a model into an engine.

    Raises:
        UsageError: the engine's package is not installed.
        PrecisionUnfit: the model cannot compute in the requested precision.
        ModelError: the engine cannot load the model.
    """
    entry = ENGINES[name]
    if not is_installed(name):
        raise UsageError(
            f"encoder.engine: {entry.package} is not installed; pip install 'kosbert-ray[{entry.extra}]', or use torch"
        )
    engine: Engine = import_module(entry.module).load(spec, settings)
    return engine


def is_installed(name: str) -> bool:
    """Returns True if the engine's package is installed."""
    package = ENGINES[name].package
    return not package or find_spec(package) is not None


def engines_for(device: str, precision: str) -> list[str]:
    """Lists the engines that support a precision on a device; "auto" matches any."""
    return [name for name in ENGINES if _precisions((name,), device, precision)]


def supports(name: str, precision: str) -> bool:
    """Returns True if an engine, or any engine for "auto", supports a precision on some device."""
    return bool(_precisions(tuple(ENGINES) if name == "auto" else (name,), "auto", precision))


def require_supported(engine: str, device: str, precision: str, compile: bool) -> None:
    """Checks options against the table; "auto" matches any value.

    Raises:
        UsageError: no engine supports the combination on any machine.
    """
    engines = tuple(ENGINES) if engine == "auto" else (engine,)
    if not _precisions(engines, device):
        devices = alternatives(each for name in engines for each in ENGINES[name].precisions)
        raise UsageError(f"encoder.engine: {engine} runs on {devices} only, and the device is {device}")
    if not _precisions(engines, device, precision):
        where = [
            f"encoder.engine={name} on {alternatives(found)}"
            for name, entry in ENGINES.items()
            if (found := [each for each, known in entry.precisions.items() if precision in known])
        ]
        given = " on ".join(each for each in (engine, device) if each != "auto")
        supported = alternatives(_precisions(engines, device))
        raise UsageError(f"encoder.precision: {precision} needs {alternatives(where)}; {given} supports {supported}")
    if compile and not any(device in ("auto", each) for name in engines for each in ENGINES[name].compiles_on):
        devices = alternatives(each for entry in ENGINES.values() for each in entry.compiles_on)
        raise UsageError(f"encoder.compile: compiling is supported on {devices} only, and the device is {device}")


def _precisions(engines: Iterable[str], device: str, precision: str = "auto") -> list[str]:
    """Lists the precisions of some engines on a device, or ``precision`` alone if it is among them."""
    found = [
        each
        for name in engines
        for there, precisions in ENGINES[name].precisions.items()
        for each in precisions
        if device in ("auto", there) and precision in ("auto", each)
    ]
    return list(dict.fromkeys(found))
