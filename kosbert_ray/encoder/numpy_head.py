"""The modules behind a static embedding (Dense, Normalize, Truncate) in NumPy, in float32. ``head`` has them in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder import modules
from kosbert_ray.encoder.static_table import read_tensors
from kosbert_ray.errors import ModelError

Matrix = npt.NDArray[np.float32]
Layer = Callable[[Matrix], Matrix]

LEAST_LENGTH = 1e-12  # torch's F.normalize divides by no less
# Matrix products take this many rows at a time, so that a row's rounding does not depend on the number of rows.
BLOCK_ROWS = 64
# By the class of torch.nn that a Dense module names.
ACTIVATIONS: dict[str, Layer] = {
    "Identity": lambda vectors: vectors,
    "ReLU": lambda vectors: np.maximum(vectors, 0),
    "Tanh": np.tanh,
}


def require_layers(parts: tuple[modules.HeadPart, ...]) -> None:
    """Raises ModelError for an activation that is not among ``ACTIVATIONS``."""
    for part in parts:
        if isinstance(part, modules.Dense) and part.activation.rpartition(".")[2] not in ACTIVATIONS:
            raise ModelError(
                f"{part.folder}: activation {part.activation} is not supported in a static embedding model; supported are "
                f"{', '.join(ACTIVATIONS)}"
            )


def layers(parts: tuple[modules.HeadPart, ...]) -> list[Layer]:
    """Returns the modules as functions from float32 ``[n, in]`` to float32 ``[n, out]``.

    Raises:
        ModelError: a Dense layer's weights cannot be read or do not fit its config.
    """
    require_layers(parts)
    return [LAYERS[type(part)](part) for part in parts]


def _normalize(_part: modules.Normalize) -> Layer:
    def normalize(vectors: Matrix) -> Matrix:
        lengths = np.sqrt(np.sum(vectors * vectors, axis=1, keepdims=True))
        scaled: Matrix = vectors / np.maximum(lengths, np.float32(LEAST_LENGTH))
        return scaled

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
    linear, bias = weights["linear.weight"].T, weights.get("linear.bias", np.float32(0))
    activate = ACTIVATIONS[part.activation.rpartition(".")[2]]
    residual: Layer = lambda vectors: np.zeros_like(vectors[:, :1])  # noqa: E731
    if part.residual:
        residual = partial(_product, weights["residual.weight"].T) if "residual.weight" in weights else lambda same: same

    def dense(vectors: Matrix) -> Matrix:
        found: Matrix = activate(_product(linear, vectors) + bias) + residual(vectors)
        return found

    return dense


def _product(matrix: Matrix, vectors: Matrix) -> Matrix:
    """Returns ``vectors @ matrix``, block by block of equally many rows."""
    rows = len(vectors)
    padded = np.zeros((-(-rows // BLOCK_ROWS) * BLOCK_ROWS, vectors.shape[1]), np.float32)
    padded[:rows] = vectors
    blocks = [padded[first : first + BLOCK_ROWS] @ matrix for first in range(0, len(padded), BLOCK_ROWS)]
    return np.concatenate(blocks)[:rows] if blocks else np.zeros((0, matrix.shape[1]), np.float32)


LAYERS: dict[type, Callable[[Any], Layer]] = {
    modules.Dense: _dense,
    modules.Normalize: _normalize,
    modules.Truncate: _truncate,
}
