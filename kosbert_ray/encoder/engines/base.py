"""The engine protocol, and what every engine shares. Loads neither torch nor OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from kosbert_ray.encoder.packing import Batch, Pack
from kosbert_ray.errors import ModelError
from kosbert_ray.vectors.kinds import DENSE, Kind

# Of each kind the vectors of a batch's sequences: dense as float32 ``[sequences, dimension]``, sparse as SparseVectors,
# multi-vector as TokenVectors.
Computed: TypeAlias = Mapping[Kind, Any]

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
        kinds: the kinds of vectors that it computes.
    """

    attention: str
    notices: list[str]
    vocabulary: int
    streams: int
    pack: Pack
    kinds: tuple[Kind, ...]

    def vectors(self, batch: Batch, kinds: Sequence[Kind] = (DENSE,)) -> Computed:
        """Returns the vectors of a batch's sequences, of each of ``kinds``; dense ones of its spans, if it has any."""
        ...

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens that the engine computes for a batch, padding included."""
        ...

    def default_token_budget(self) -> int:
        """Returns the number of tokens per batch that suits the engine on this machine."""
        ...
