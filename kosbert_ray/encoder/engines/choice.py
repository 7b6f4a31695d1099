"""Chooses the engine for ``encoder.engine=auto`` by a pure rule, so that all parts of a job and all of its runs agree."""

from __future__ import annotations

import platform

from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.spec import ModelSpec

CPUS = ("x86_64", "AMD64")  # where OpenVINO was measured to be the faster engine
# Architectures whose OpenVINO graphs were tested to give PyTorch's vectors.
OPENVINO_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"})


def preferred_engine(spec: ModelSpec, options: EncoderOptions, device: str) -> str:
    """Returns the engine to prefer: OpenVINO for a tested architecture on an x86 CPU if it is installed, else torch.

    Args:
        spec: the model.
        options: the options; an engine is preferred only for a precision that it supports.
        device: the device in use: "cuda", "mps" or "cpu".
    """
    if device != "cpu" or options.device not in ("cpu", "auto"):
        return "torch"
    fits = [name for name in table.engines_for("cpu", options.precision) if table.is_installed(name)]
    openvino = spec.model_type in OPENVINO_TYPES and not spec.remote_code and platform.machine() in CPUS
    if "openvino" in fits and (openvino or "torch" not in fits):
        return "openvino"
    return "torch"
