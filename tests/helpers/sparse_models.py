"""Tiny models of sparse vectors, with random weights, as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from zoo import ZOO, tokenizer


def save_splade(folder: Path, kind: str, pooling: tuple[str, str] = ("max", "relu")) -> Path:
    """A tiny SPLADE model with random weights, as sentence-transformers saves it."""
    row = ZOO[kind]
    words = tokenizer(row.tokenizer)
    torch.manual_seed(0)
    settings = row.config | {"vocab_size": len(words), "initializer_range": 0.1}
    config = getattr(transformers, f"{row.kind}Config")(**settings)
    plain = folder / "plain"
    getattr(transformers, f"{row.kind}ForMaskedLM")(config).save_pretrained(plain)
    words.save_pretrained(plain)
    body = Transformer(str(plain), transformer_task="fill-mask", max_seq_length=100)
    SparseEncoder(modules=[body, SpladePooling(*pooling)], device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"
