"""The head: the modules behind pooling (Dense, Normalize, Truncate), in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model import modules


class Head(torch.nn.Module):
    """The modules behind pooling, in the model's order.

    Raises:
        ModelError: a Dense layer's weights do not fit, or its activation is not a torch module.
    """

    def __init__(self, parts: tuple[modules.HeadPart, ...]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(LAYERS[type(part)](part) for part in parts)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Maps float32 ``[n, pooled]`` to float32 ``[n, dimension]``."""
        for part in self.parts:
            vectors = part(vectors)
        return vectors


class _Truncate(torch.nn.Module):
    def __init__(self, part: modules.Truncate) -> None:
        super().__init__()
        self.dimension = part.dimension

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, : self.dimension].contiguous()


class _Normalize(torch.nn.Module):
    def __init__(self, _part: modules.Normalize) -> None:
        super().__init__()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, p=2, dim=-1)


class _LayerNorm(torch.nn.Module):
    def __init__(self, part: modules.LayerNorm) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(part.dimension)
        _load_weights(self, part.folder)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(vectors)
        return normed


class _Linear(torch.nn.Module):
    def __init__(self, part: modules.Linear) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(part.in_features, part.out_features, bias=part.bias)
        self.linear.load_state_dict(load_tensors(part.path))  # whose shapes were read before

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(vectors)
        return found


class _Dense(torch.nn.Module):
    def __init__(self, part: modules.Dense) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(part.in_features, part.out_features, bias=part.bias)
        square = part.in_features == part.out_features
        self.residual: torch.nn.Module | None = None
        if part.residual:
            self.residual = (
                torch.nn.Identity() if square else torch.nn.Linear(part.in_features, part.out_features, bias=False)
            )
        _load_weights(self, part.folder)
        self.activation = _activation(part)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.activation(self.linear(vectors))
        return out if self.residual is None else out + self.residual(vectors)


def _load_weights(module: torch.nn.Module, folder: Path) -> None:
    """Loads a module's weights; raises ModelError if they do not fit."""
    try:
        module.load_state_dict(load_tensors(folder / "model.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"{folder}: its weights do not fit its config ({first_line(error)})") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file; raises ModelError if it cannot be read."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error


LAYERS: dict[type, Callable[[Any], torch.nn.Module]] = {
    modules.Dense: _Dense,
    modules.LayerNorm: _LayerNorm,
    modules.Linear: _Linear,
    modules.Normalize: _Normalize,
    modules.Truncate: _Truncate,
}


def _activation(part: modules.Dense) -> torch.nn.Module:
    """Returns a Dense layer's activation, which must be a class of ``torch.nn``."""
    module, _, name = part.activation.rpartition(".")
    kind = getattr(torch.nn, name, None)
    if module.partition(".")[0] != "torch" or not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ModelError(f"{part.folder}: activation {part.activation!r} is not a torch.nn module")
    return kind()
