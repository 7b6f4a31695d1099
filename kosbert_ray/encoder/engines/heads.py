"""The heads behind the transformer in PyTorch: one for each kind of vectors, over the hidden states of one batch.

To add a way to make sparse vectors, write its module and add an entry to ``SPARSE_HEADS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kosbert_ray.encoder.engines import cuda
from kosbert_ray.encoder.engines.mlm_head import LogitsHead, splade
from kosbert_ray.encoder.head import Head
from kosbert_ray.encoder.packing import Batch
from kosbert_ray.model.pooling import pool, pool_by_offsets, pool_spans, pool_spans_by_offsets
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.vector_heads import Splade, TokenHead
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors


@dataclass(frozen=True)
class States:
    """The hidden states of a batch.

    Attributes:
        hidden: ``[T, h]``, in the batch's order; further rows belong to no text.
        batch: the batch.
        by_offsets: whether to pool by offsets, as on GPUs.
    """

    hidden: torch.Tensor
    batch: Batch
    by_offsets: bool


VectorHead = Callable[[States], Any]


def heads(spec: ModelSpec, device: str, skip: int, logits: LogitsHead | None) -> dict[Kind, VectorHead]:
    """Loads a head for each kind of vectors that a model has.

    Args:
        spec: the model.
        device: where its hidden states are.
        skip: leading tokens to leave out of pooling.
        logits: the head of its masked language model, if it has one.

    Raises:
        ModelError: weights do not fit.
    """
    found: dict[Kind, VectorHead] = {}
    if DENSE in spec.kinds:
        found[DENSE] = DenseHead(spec, device, skip)
    if spec.sparse:
        found[SPARSE] = SPARSE_HEADS[type(spec.sparse)](spec, device, logits)
    if spec.multi_vector:
        found[MULTI_VECTOR] = TokenVectorsHead(spec, spec.multi_vector, device)
    return found


def pooled(states: States, modes: tuple[str, ...], skip: int) -> torch.Tensor:
    """Pools the hidden states of each text or span, float32 ``[texts or spans, h * modes]``."""
    if spans := states.batch.spans:
        if states.by_offsets:
            return pool_spans_by_offsets(states.hidden, spans.starts, spans.lengths, modes, cuda.to_device)
        return pool_spans(states.hidden, spans.starts, spans.lengths, modes)
    if states.by_offsets:
        return pool_by_offsets(states.hidden, states.batch.offsets, modes, skip, cuda.to_device)
    return pool(states.hidden, states.batch.groups, modes, skip)


def to_host(tensor: torch.Tensor) -> Any:
    """Copies a tensor to NumPy."""
    return cuda.to_host(tensor) if tensor.device.type == "cuda" else tensor.cpu().numpy()


class DenseHead:
    """Pools the hidden states of a text, and applies the model's head: float32 ``[texts, dimension]``."""

    def __init__(self, spec: ModelSpec, device: str, skip: int) -> None:
        self._modes, self._skip = spec.pooling, skip
        self._head = Head(spec.head).to(device).eval()

    def __call__(self, states: States) -> Any:
        """Returns the vectors of a batch."""
        return to_host(self._head(pooled(states, self._modes, self._skip)))


class SpladeHead:
    """Pools the logits of a masked language model."""

    def __init__(self, spec: ModelSpec, _device: str, logits: LogitsHead | None) -> None:
        assert isinstance(spec.sparse, Splade) and logits is not None
        self._pooling, self._logits = spec.sparse, logits

    def __call__(self, states: States) -> SparseVectors:
        """Returns the vectors of a batch."""
        return splade(states.hidden, states.batch.groups, self._logits, self._pooling)


class TokenVectorsHead:
    """Applies the model's head to each token: float16 vectors, as outputs store them."""

    def __init__(self, spec: ModelSpec, head: TokenHead, device: str) -> None:
        self._head = Head(head.head).to(device).eval()
        self._skip = head.skip
        self._left_out, self._query_left_out = (ids_of(spec, words) for words in (head.skiplist, head.query_skiplist))

    def __call__(self, states: States) -> TokenVectors:
        """Returns the vectors of a batch."""
        batch = states.batch
        hidden = states.hidden[: len(batch.ids)]
        keep = batch.positions >= self._skip
        left_out = self._query_left_out if batch.query else self._left_out
        if len(left_out):
            keep &= ~np.isin(batch.ids, left_out)
        lengths = np.add.reduceat(keep.astype(np.int64), batch.offsets[:-1])
        if not keep.all():
            hidden = hidden[torch.from_numpy(np.flatnonzero(keep)).to(hidden.device)]
        return TokenVectors.of_lengths(to_host(self._head(hidden.float()).half()), lengths)


def ids_of(spec: ModelSpec, words: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Returns the token ids of the words of a skiplist. Those that are no tokens are left out, as the reference does."""
    if not words:
        return np.empty(0, np.int64)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        spec.transformer, local_files_only=True, trust_remote_code=spec.remote_code
    )
    unknown = tokenizer.unk_token_id
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in words}
    known = [id for word, id in ids.items() if id is not None and (id != unknown or word == tokenizer.unk_token)]
    return np.array(known, np.int64)


SPARSE_HEADS: Mapping[type, Callable[[ModelSpec, str, LogitsHead | None], VectorHead]] = {Splade: SpladeHead}
