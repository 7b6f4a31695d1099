"""Reads the tensors of weight files, and their shapes, without torch unless they are pickles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model import pickled
from kosbert_ray.model.files import PICKLES

BF16 = "BF16"  # as safetensors names the one type in use that NumPy lacks


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns the tensors of a safetensors file; bf16 as float32.

    Raises:
        ModelError: the file cannot be read.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, "numpy") as weights:
            types = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
            found = {name: weights.get_tensor(name) for name, kind in types.items() if kind != BF16}
        if len(found) < len(types):
            for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
                if tensor["dtype"] == BF16:  # the upper half of a float32
                    upper = np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16
                    found[name] = upper.view("<f4").reshape(tensor["shape"])
    except (SafetensorError, OSError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
    return found


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors in weight files. A pickle is read whole, with torch.

    Raises:
        ModelError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.suffix in PICKLES:
            shapes |= {name: tuple(tensor.shape) for name, tensor in pickled.read_tensors(path).items()}
            continue
        try:
            with safe_open(path, "numpy") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
    return shapes
