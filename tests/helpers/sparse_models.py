"""Tiny models of sparse vectors, with random weights, as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SparseStaticEmbedding, SpladePooling
from zoo import LENGTH, ZOO, save, save_plain, tokenizer

CODES = 256  # activations of the autoencoder


def save_splade(
    folder: Path, kind: str, pooling: tuple[str, str] = ("max", "relu"), max_active_dims: int | None = None
) -> Path:
    """A tiny SPLADE model with random weights, as sentence-transformers saves it."""
    modules = [masked_transformer(folder, kind), SpladePooling(*pooling)]
    return _saved(SparseEncoder(modules=modules, device="cpu", max_active_dims=max_active_dims), folder)


def save_autoencoder(folder: Path, kind: str, k: int = 8, normalize: bool = False) -> Path:
    """A tiny model with a sparse autoencoder over its dense vectors, with random weights."""
    body = Transformer(str(save(ZOO[kind], folder)), max_seq_length=LENGTH)
    pooling = Pooling(body.get_embedding_dimension(), "mean")
    torch.manual_seed(3)
    coder = SparseAutoEncoder(48, CODES, k=k, k_aux=16, normalize=normalize)
    with torch.no_grad():
        coder.pre_bias.normal_(std=0.1)
        coder.latent_bias.normal_(std=0.1)
    modules = [body, pooling, Dense(pooling.get_embedding_dimension(), 48), Normalize(), coder]
    return _saved(SparseEncoder(modules=modules, device="cpu"), folder / "coded")


def save_inference_free(folder: Path, default: str | None = "document", **options: object) -> Path:
    """A tiny SPLADE model for documents whose queries have a random weight for each token, without a transformer."""
    words = tokenizer("wordpiece")
    weight = torch.rand(len(words), generator=torch.Generator().manual_seed(1)) - 0.2
    router = Router.for_query_document(
        [SparseStaticEmbedding(words, weight.clamp(min=0))],
        [masked_transformer(folder, "bert"), SpladePooling("max", "log1p_relu")],
        default_route=default,
    )
    return _saved(SparseEncoder(modules=[router], device="cpu", **options), folder)


def masked_transformer(folder: Path, kind: str) -> Transformer:
    """A tiny masked language model with random weights."""
    plain = save_plain(ZOO[kind], folder / "plain", "ForMaskedLM", 0.1)
    return Transformer(str(plain), transformer_task="fill-mask", max_seq_length=LENGTH)


def _saved(model: SparseEncoder, folder: Path) -> Path:
    model.save_pretrained(str(folder / "model"))
    return folder / "model"
