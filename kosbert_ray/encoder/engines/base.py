"""The engine protocol, and what every engine shares. Loads neither torch nor OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.packing import Batch, Pack
from kosbert_ray.encoder.sparse import SparseVectors
from kosbert_ray.errors import ModelError

Computed: TypeAlias = "npt.NDArray[np.float32] | SparseVectors"

# The least cosine between two ways to compute a vector that differ by rounding only: bf16 keeps 8 bits of each product,
# fp32 keeps 24.
AGREEMENT = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999}


class PrecisionUnfit(ModelError):
    """The model cannot compute in the requested precision."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine.

    Attributes:
        device: "cuda", "mps" or "cpu".
        precision: "fp32", "bf16", "fp16" or "int8".
        threads: CPU threads.
        skip: leading tokens to leave out of pooling.
        compile: whether to compile the model, where the engine supports it.
    """

    device: str
    precision: str
    threads: int = 1
    skip: int = 0
    compile: bool = False


class Engine(Protocol):
    """A loaded model: transformer, pooling and head.

    An engine's module has a function ``load(spec: ModelSpec, settings: EngineSettings) -> Engine``, and an entry in
    :data:`~kosbert_ray.encoder.engines.table.ENGINES` names the module.

    Attributes:
        attention: how batches are computed, for receipts ("packed", "padded", "one_length").
        notices: messages for the user.
        vocabulary: number of token ids that the model has embeddings for.
        streams: number of batches that :meth:`vectors` takes concurrently, each from its own thread.
        pack: how a slice is cut into batches.
    """

    attention: str
    notices: list[str]
    vocabulary: int
    streams: int
    pack: Pack

    def vectors(self, batch: Batch) -> Computed:
        """Returns the vectors of a batch: float32, one row for each sequence or for each of its spans; or sparse ones."""
        ...

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens that the engine computes for a batch, padding included."""
        ...

    def default_token_budget(self) -> int:
        """Returns the number of tokens per batch that suits the engine on this machine."""
        ...
