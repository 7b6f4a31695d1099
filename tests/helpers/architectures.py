"""Tiny models of any architecture that transformers has, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import everyday
from models import SIZE, WIDTH, save_transformer
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

WIDE = {"initializer_range": 0.2}  # so that a wrong mask or position shows
DECODER = SIZE | WIDE | {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
BIDIRECTIONAL = {"use_bidirectional_attention": True, "query_pre_attn_scalar": 32}


def save(folder: Path, kind: str, plain: bool = False, length: int = 200, model: str = "", **config: Any) -> Path:
    """A tiny model of an architecture with random weights: ``kind`` is what its classes' names begin with."""
    plain_folder = save_transformer("bert", everyday(), folder / "plain", length)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(plain_folder))
    made = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **config)
    torch.manual_seed(5)
    network = getattr(transformers, model or f"{kind}Model")(made)
    network.save_pretrained(plain_folder)
    if plain:
        return plain_folder
    modules = [Transformer(str(plain_folder), max_seq_length=length), Pooling(WIDTH, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"
