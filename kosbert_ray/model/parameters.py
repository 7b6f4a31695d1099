"""Counts the parameters of a model from the headers of its weight files, without loading it, and their bytes."""

from __future__ import annotations

import math
from pathlib import Path

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.spec import ModelSpec

PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
PARAMETER_BYTES = 4  # of a pickled weight, whose file has no header that can be read safely
# Parts of the names of what tokens are not multiplied with: tables, of which a token uses one row, and the pooler.
LEFT_OUT = ("embed", "wte", "wpe", "pooler")


def computing_parameters(spec: ModelSpec) -> int:
    """Counts the parameters that every token is multiplied with, that is, all but embedding tables and BERT's pooler.

    A static embedding model has none: its tokens are looked up, and its head multiplies a text's mean once.
    For pickled weights this is an upper bound: their bytes divided by four.

    Raises:
        ModelError: a weight file cannot be read.
    """
    return 0 if spec.static else _count(spec, LEFT_OUT)


def weight_bytes(spec: ModelSpec, precision: str) -> int:
    """Returns the memory that a model's weights take in a precision. Activations and libraries come on top.

    Raises:
        ModelError: a weight file cannot be read.
    """
    return _count(spec, ()) * PRECISION_BYTES[precision]


def _count(spec: ModelSpec, left_out: tuple[str, ...]) -> int:
    return sum(_in_file(path, left_out) for path in spec.weight_files if path.suffix in (".safetensors", ".bin"))


def _in_file(path: Path, left_out: tuple[str, ...]) -> int:
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".bin":
        return path.stat().st_size // PARAMETER_BYTES
    try:
        with safe_open(path, "numpy") as weights:
            names = [name for name in weights.keys() if not any(part in name.lower() for part in left_out)]  # noqa: SIM118
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
