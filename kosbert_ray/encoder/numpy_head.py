"""The modules behind a static embedding (Dense, Normalize, Truncate) in NumPy, in float32. ``head`` has them in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import ModelError
from kosbert_ray.model import modules
from kosbert_ray.model.tensors import read_tensors

Matrix = npt.NDArray[np.float32]
Layer = Callable[[Matrix], Matrix]

LEAST_LENGTH = 1e-12  # torch's F.normalize divides by no less
# By the class of torch.nn that a Dense module names.
ACTIVATIONS: dict[str, Layer] = {
    "Identity": lambda vectors: vectors,
    "ReLU": lambda vectors: np.maximum(vectors, 0),
    "Tanh": np.tanh,
}


def require_layers(parts: tuple[modules.HeadPart, ...]) -> None:
    """Raises ModelError for a module that is not among ``LAYERS``, or an activation that is not among ``ACTIVATIONS``."""
    for part in parts:
        if type(part) not in LAYERS:
            raise ModelError(f"a {type(part).__name__} module is not supported in a static embedding model")
        if isinstance(part, modules.Dense) and part.activation.rpartition(".")[2] not in ACTIVATIONS:
            raise ModelError(
                f"{part.folder}: activation {part.activation} is not supported in a static embedding model; supported are "
                f"{', '.join(ACTIVATIONS)}"
            )


def layers(parts: tuple[modules.HeadPart, ...]) -> list[Layer]:
    """Returns the modules as functions from float32 ``[n, in]``, which they may overwrite, to float32 ``[n, out]``.

    Raises:
        ModelError: a Dense layer's weights cannot be read or do not fit its config.
    """
    require_layers(parts)
    return [LAYERS[type(part)](part) for part in parts]


def _normalize(_part: modules.Normalize) -> Layer:
    def normalize(vectors: Matrix) -> Matrix:
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors /= np.maximum(lengths, np.float32(LEAST_LENGTH))[:, None]
        return vectors

    return normalize


def _truncate(part: modules.Truncate) -> Layer:
    return lambda vectors: np.ascontiguousarray(vectors[:, : part.dimension])


def _dense(part: modules.Dense) -> Layer:
    path = part.folder / "model.safetensors"
    weights = {name: tensor.astype(np.float32, copy=False) for name, tensor in read_tensors(path).items()}
    shape = (part.out_features, part.in_features)
    expected = {"linear.weight": shape} | ({"linear.bias": shape[:1]} if part.bias else {})
    if part.residual and part.in_features != part.out_features:
        expected["residual.weight"] = shape
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise ModelError(f"{path}: its weights do not fit its config")
    linear, bias = weights["linear.weight"], weights.get("linear.bias", np.float32(0))
    projection = weights.get("residual.weight")
    activate = ACTIVATIONS[part.activation.rpartition(".")[2]]

    def dense(vectors: Matrix) -> Matrix:
        found: Matrix = activate(_product(vectors, linear) + bias)
        if part.residual:
            found = found + (vectors if projection is None else _product(vectors, projection))
        return found

    return dense


def _product(vectors: Matrix, matrix: Matrix) -> Matrix:
    """Returns ``vectors @ matrix.T``. BLAS rounds a row differently by its position among the others; einsum does not."""
    found: Matrix = np.einsum("ni,oi->no", vectors, matrix)
    return found


LAYERS: dict[type, Callable[[Any], Layer]] = {
    modules.Dense: _dense,
    modules.Normalize: _normalize,
    modules.Truncate: _truncate,
}
