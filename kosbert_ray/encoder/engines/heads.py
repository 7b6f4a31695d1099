"""The heads behind the transformer in PyTorch: one for each kind of vectors, over the hidden states of one batch.

To add a way to make sparse vectors, write its module and add an entry to ``SPARSE_HEADS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kosbert_ray.encoder.engines import cuda
from kosbert_ray.encoder.engines.mlm_head import LogitsHead, block_rows, positive, splade
from kosbert_ray.encoder.head import Head, load_tensors
from kosbert_ray.encoder.packing import Batch
from kosbert_ray.encoder.tokenizer import transformers_tokenizer
from kosbert_ray.errors import ModelError
from kosbert_ray.model.pooling import pool, pool_by_offsets, pool_spans, pool_spans_by_offsets
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.vector_heads import AutoEncoder, LexicalWeights, Splade, TokenHead
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

STANDARD_EPSILON = 1e-5  # of SparseAutoEncoder.LN


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
    dense = DenseHead(spec, device, skip) if DENSE in spec.kinds else None
    if dense:
        found[DENSE] = dense
    if spec.sparse:
        found[SPARSE] = SPARSE_HEADS[type(spec.sparse)](Basis(spec, device, logits, dense))
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
        return to_host(self.on_device(states))

    def on_device(self, states: States) -> torch.Tensor:
        """Returns the vectors of a batch where they are computed."""
        vectors: torch.Tensor = self._head(pooled(states, self._modes, self._skip))
        return vectors


@dataclass(frozen=True)
class Basis:
    """The parts that a head for sparse vectors is made from.

    Attributes:
        spec: the model.
        device: where its hidden states are.
        logits: the head of its masked language model, if it has one.
        dense: the head for its dense vectors, if it has them.
    """

    spec: ModelSpec
    device: str
    logits: LogitsHead | None
    dense: DenseHead | None


class SpladeHead:
    """Pools the logits of a masked language model."""

    def __init__(self, basis: Basis) -> None:
        assert isinstance(basis.spec.sparse, Splade) and basis.logits is not None
        self._pooling, self._logits = basis.spec.sparse, basis.logits

    def __call__(self, states: States) -> SparseVectors:
        """Returns the vectors of a batch."""
        return splade(states.hidden, states.batch.groups, self._logits, self._pooling)


class AutoEncoderHead:
    """Keeps the largest activations of a sparse autoencoder over the dense vectors.

    Source: ``SparseAutoEncoder`` of sentence-transformers 6.
    """

    def __init__(self, basis: Basis) -> None:
        coder, weights = basis.spec.sparse, dict[str, torch.Tensor]()
        assert isinstance(coder, AutoEncoder) and basis.dense is not None
        self._coder, self._dense = coder, basis.dense
        for name, tensor in load_tensors(coder.folder / "model.safetensors").items():
            # The decoder is the encoder transposed, and safetensors stores a shared tensor under one name.
            weights[name.replace("decoder.linear", "encoder")] = tensor.to(basis.device).float()
        shapes = {
            "pre_bias": (coder.in_features,),
            "latent_bias": (coder.dimension,),
            "encoder.weight": (coder.dimension, coder.in_features),
        }
        if any(name not in weights or tuple(weights[name].shape) != shape for name, shape in shapes.items()):
            raise ModelError(f"{coder.folder}: its weights do not fit its config")
        self._pre_bias, self._bias, self._weight = (weights[name] for name in shapes)

    def __call__(self, states: States) -> SparseVectors:
        """Returns the vectors of a batch."""
        dense = self._dense.on_device(states)
        if self._coder.normalize:
            dense = dense - dense.mean(-1, keepdim=True)
            dense = dense / (dense.std(-1, keepdim=True) + STANDARD_EPSILON)
        rows = block_rows(dense, self._coder.dimension)
        return SparseVectors.empty().joined([self._activations(some) for some in dense.split(rows)])

    def _activations(self, dense: torch.Tensor) -> SparseVectors:
        found = torch.nn.functional.linear(dense - self._pre_bias, self._weight, self._bias)
        largest = found.topk(min(self._coder.limit, self._coder.dimension))
        return positive(torch.zeros_like(found).scatter_(-1, largest.indices, largest.values.relu()))


class LexicalHead:
    """Gives each token of a text, but special ones, a weight by its hidden state.

    Source: ``_process_token_weights`` of ``M3Embedder`` in FlagEmbedding 1.4.
    """

    def __init__(self, basis: Basis) -> None:
        assert isinstance(basis.spec.sparse, LexicalWeights)
        self._spec = basis.spec
        self._layer = Head((basis.spec.sparse.layer,)).to(basis.device).eval()

    @cached_property
    def _left_out(self) -> npt.NDArray[np.int64]:
        """The ids of special tokens. A tokenizer takes seconds to load, which dense vectors do not need."""
        words = transformers_tokenizer(self._spec)
        ids = (words.cls_token_id, words.eos_token_id, words.pad_token_id, words.unk_token_id)
        return np.array([id for id in ids if id is not None], np.int64)

    def __call__(self, states: States) -> SparseVectors:
        """Returns the vectors of a batch."""
        batch = states.batch
        weights = to_host(self._layer(states.hidden[: len(batch.ids)].float()).relu()[:, 0])
        lengths = np.diff(batch.offsets)
        finite: npt.NDArray[np.bool_] = np.logical_and.reduceat(np.isfinite(weights), batch.offsets[:-1])
        kept = ~np.isin(batch.ids, self._left_out) & (weights > 0)
        # Of each text and token id the largest weight: the last one after sorting by all three.
        texts, ids, weights = np.repeat(np.arange(len(lengths)), lengths)[kept], batch.ids[kept], weights[kept]
        order = np.lexsort((weights, ids, texts))
        texts, ids, weights = texts[order], ids[order], weights[order]
        last = np.append((np.diff(texts) != 0) | (np.diff(ids) != 0), True)[: len(texts)]
        return SparseVectors.of_coordinates(texts[last], ids[last], weights[last], finite)


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
    tokenizer = transformers_tokenizer(spec)
    unknown = tokenizer.unk_token_id
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in words}
    known = [id for word, id in ids.items() if id is not None and (id != unknown or word == tokenizer.unk_token)]
    return np.array(known, np.int64)


SPARSE_HEADS: Mapping[type, Callable[[Basis], VectorHead]] = {
    Splade: SpladeHead,
    AutoEncoder: AutoEncoderHead,
    LexicalWeights: LexicalHead,
}
