"""Fits the options to the model, and chooses the engine for ``encoder.engine=auto``.

Both follow from rules alone, so that all parts of a job and all of its runs agree.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.numpy_head import require_layers
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.model.parameters import weight_bytes
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.vectors.kinds import DENSE, Kind, named

CPUS = ("x86_64", "AMD64")  # where OpenVINO was measured to be the faster engine
# Architectures whose OpenVINO graphs were tested to give PyTorch's vectors.
OPENVINO_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"})
# The conversion to OpenVINO holds a model twice in fp32: larger ones are converted only if the user asks for it.
CONVERTED_BYTES = 4 * 10**9

# The options under which a static embedding model runs, apart from "auto".
STATIC_OPTIONS = {"engine": table.STATIC, "device": "cpu", "precision": "fp32"}


def require_fitting(spec: ModelSpec, options: EncoderOptions, kinds: Sequence[Kind] = (DENSE,)) -> None:
    """Raises UsageError if the model cannot run under these options on any machine, ModelError if under none.

    Args:
        spec: the model.
        options: the options.
        kinds: the kinds of vectors to compute.
    """
    if options.engine == table.STATIC and not spec.static:
        raise UsageError(
            f"encoder.engine: static is for static embedding models, and {spec.folder} is a {spec.model_type} model; "
            "use encoder.engine=auto"
        )
    others = [kind for kind in kinds if kind != DENSE]
    if others and not spec.static and options.engine not in ("auto", table.TORCH):
        raise UsageError(f"encoder.engine: {spec.folder}: torch alone computes {named(others)} vectors; use torch")
    if spec.static:
        require_layers(spec.head)
    for name, value in STATIC_OPTIONS.items() if spec.static else ():
        given = getattr(options, name)
        if given not in ("auto", value):
            raise UsageError(
                f"encoder.{name}: {spec.folder} is a static embedding model, which runs with {value} only, not {given}"
            )


def fitted(spec: ModelSpec, options: EncoderOptions) -> EncoderOptions:
    """Returns the options with the engine and the device of the model's kind: a static embedding model runs on CPUs."""
    if spec.static:
        return options.model_copy(update={"engine": table.STATIC, "device": "cpu"})
    if options.engine == table.STATIC:
        return options.model_copy(update={"engine": "auto"})
    return options


def preferred_engine(spec: ModelSpec, options: EncoderOptions, device: str, kinds: Sequence[Kind] = (DENSE,)) -> str:
    """Returns the engine to prefer: that of its kind for a static embedding model, OpenVINO for a tested architecture of up
    to a billion parameters on an x86 CPU if it is installed, else torch.

    Args:
        spec: the model.
        options: the options; an engine is preferred only for a precision that it supports.
        device: the device in use: "cuda", "mps" or "cpu".
        kinds: the kinds of vectors to compute; all but dense ones take torch.
    """
    if spec.static:
        return table.STATIC
    if {*kinds} != {DENSE} or device != "cpu" or options.device not in ("cpu", "auto"):
        return table.TORCH
    fits = [name for name in table.engines_for("cpu", options.precision) if table.is_installed(name)]
    openvino = (
        spec.model_type in OPENVINO_TYPES
        and not spec.remote_code
        and platform.machine() in CPUS
        and weight_bytes(spec, "fp32") <= CONVERTED_BYTES
    )
    if "openvino" in fits and (openvino or table.TORCH not in fits):
        return "openvino"
    return table.TORCH
