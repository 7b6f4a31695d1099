"""Token vectors to sentence vectors: pooling, Dense and Normalize, in float32 whatever the encoder computed in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kosbert_ray.encoder import spec as specs
from kosbert_ray.errors import ModelError, first_line


def pool(hidden: torch.Tensor, groups: tuple[tuple[int, int, int], ...], modes: tuple[str, ...], skip: int) -> torch.Tensor:
    """Pools a packed batch.

    Args:
        hidden: token vectors ``[T, h]``.
        groups: ``(start, count, length)`` of each run of equal-length sequences.
        modes: sentence-transformers' pooling modes; their results are concatenated.
        skip: leading tokens to leave out (a prompt with ``include_prompt: false``).

    Returns:
        float32 ``[sequences, h * len(modes)]``.
    """
    pooled = []
    for start, count, length in groups:
        tokens = hidden[start : start + count * length].view(count, length, -1)[:, min(skip, length - 1) :]
        parts = []
        for mode in modes:
            if mode == "cls":
                parts.append(tokens[:, 0].float())
            elif mode == "max":
                parts.append(tokens.amax(dim=1).float())
            else:
                total = tokens.sum(dim=1, dtype=torch.float32)
                parts.append(total / (tokens.shape[1] ** (0.5 if mode == "mean_sqrt_len_tokens" else 1.0)))
        pooled.append(torch.cat(parts, dim=1))
    return torch.cat(pooled)


def pool_by_offsets(
    hidden: torch.Tensor,
    offsets: npt.NDArray[np.int32],
    modes: tuple[str, ...],
    skip: int,
    to_device: Callable[[npt.NDArray[np.int64]], torch.Tensor],
) -> torch.Tensor:
    """As :func:`pool`, but without a launch for each length and without waiting for the device: for a GPU.

    Args:
        hidden: token vectors ``[T', h]``, of which the first ``offsets[-1]`` count.
        offsets: int32 ``[sequences + 1]``: where each sequence begins.
        modes: sentence-transformers' pooling modes.
        skip: leading tokens to leave out.
        to_device: brings an array to where ``hidden`` is.

    Returns:
        float32 ``[sequences, h * len(modes)]``.
    """
    lengths = np.diff(offsets).astype(np.int64)
    left_out = np.minimum(skip, lengths - 1)
    lengths -= left_out
    firsts = np.cumsum(lengths) - lengths
    starts = offsets[:-1] + left_out
    if skip:
        within = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
        tokens = hidden[to_device(np.repeat(starts, lengths) + within)]
    else:
        tokens = hidden[: offsets[-1]]
    counts = to_device(lengths)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(tokens[to_device(firsts)].float())
        elif mode == "max":
            parts.append(torch.segment_reduce(tokens.float(), "max", lengths=counts, unsafe=True))
        else:
            total = torch.segment_reduce(tokens.float(), "sum", lengths=counts, unsafe=True)
            parts.append(total / counts[:, None].float().pow(0.5 if mode == "mean_sqrt_len_tokens" else 1.0))
    return torch.cat(parts, dim=1)


class Head(torch.nn.Module):
    """The modules after pooling, in the model's order.

    Raises:
        ModelError: a Dense layer's weights do not fit, or its activation is no torch module.
    """

    def __init__(self, parts: tuple[specs.HeadPart, ...]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(map(_module, parts))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """float32 ``[n, pooled]`` → float32 ``[n, dimension]``."""
        for part in self.parts:
            vectors = part(vectors)
        return vectors


def _module(part: specs.HeadPart) -> torch.nn.Module:
    if isinstance(part, specs.Dense):
        return _Dense(part)
    return _Truncate(part.dimension) if isinstance(part, specs.Truncate) else _Normalize()


class _Truncate(torch.nn.Module):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, : self.dimension].contiguous()


class _Normalize(torch.nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, p=2, dim=-1)


class _Dense(torch.nn.Module):
    def __init__(self, part: specs.Dense) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(part.in_features, part.out_features, bias=part.bias)
        square = part.in_features == part.out_features
        self.residual: torch.nn.Module | None = None
        if part.residual:
            self.residual = (
                torch.nn.Identity() if square else torch.nn.Linear(part.in_features, part.out_features, bias=False)
            )
        try:
            self.load_state_dict(load_file(part.folder / "model.safetensors"))
        except (RuntimeError, OSError) as error:
            raise ModelError(f"{part.folder}: its weights do not fit its config ({first_line(error)})") from error
        self.activation = _activation(part)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.activation(self.linear(vectors))
        return out if self.residual is None else out + self.residual(vectors)


def _activation(part: specs.Dense) -> torch.nn.Module:
    module, _, name = part.activation.rpartition(".")
    kind = getattr(torch.nn, name, None)
    if module.partition(".")[0] != "torch" or not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ModelError(f"{part.folder}: activation {part.activation!r} is not a torch.nn module")
    return kind()
