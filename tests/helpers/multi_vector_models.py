"""Tiny models of token vectors, with random weights, as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from zoo import ZOO, tokenizer

PROMPTS = {"query": "질문: ", "document": "문서: "}
DIMENSION = 24


def save_colbert(
    folder: Path, kind: str, skiplist: tuple[str, ...] = (), pool_factor: float | None = None, **options: Any
) -> Path:
    """A tiny ColBERT with random weights.

    Args:
        folder: where to write it.
        kind: the row of the zoo whose transformer it has.
        skiplist: tokens without vectors in documents.
        pool_factor: of hierarchical token pooling, if any.
        options: of sentence-transformers' ``Transformer``, such as ``query_expansion``.
    """
    row = ZOO[kind]
    words = tokenizer(row.tokenizer)
    torch.manual_seed(0)
    settings = row.config | {"vocab_size": len(words), "initializer_range": 0.3}
    config = getattr(transformers, f"{row.kind}Config")(**settings)
    plain = folder / "plain"
    getattr(transformers, f"{row.kind}Model")(config).save_pretrained(plain)
    words.save_pretrained(plain)
    body = Transformer(str(plain), max_seq_length=100, **options)
    tokens = {"module_input_name": "token_embeddings"}
    modules = [
        body,
        Dense(body.get_embedding_dimension(), DIMENSION, bias=False, activation_function=torch.nn.Identity(), **tokens),
        MultiVectorMask(list(skiplist)),
        Normalize(**tokens),
    ]
    if pool_factor:
        modules.append(HierarchicalTokenPooling(pool_factor))
    model = MultiVectorEncoder(modules=modules, device="cpu", prompts=PROMPTS)
    model.save_pretrained(str(folder / "model"))
    return folder / "model"
