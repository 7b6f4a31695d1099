"""Tiny models of token vectors, with random weights, as sentence-transformers saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from zoo import ZOO, save_plain

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
    plain = save_plain(ZOO[kind], folder / "plain", "Model", 0.3)
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


def save_pylate(folder: Path, kind: str = "bert", version: int = 3, **settings: Any) -> Path:
    """A tiny ColBERT as PyLate saves it.

    Args:
        folder: where to write it.
        kind: the row of the zoo whose transformer it has.
        version: of the format; before 3 the settings do not say that it is a ColBERT.
        settings: of its config_sentence_transformers.json.
    """
    made = save_colbert(folder, kind)
    modules = json.loads((made / "modules.json").read_text())[:2]
    modules[0]["type"], modules[1]["type"] = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
    dense = {"in_features": 64, "out_features": DIMENSION, "bias": False, "use_residual": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    own = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [".", ",", "!"],
        **({"model_type": "ColBERT"} if version == 3 else {}),
        **settings,
    }
    contents = {"modules.json": modules, "1_Dense/config.json": dense, "config_sentence_transformers.json": own}
    contents["sentence_bert_config.json"] = {"max_seq_length": 40, "do_lower_case": False}
    for name, content in contents.items():
        (made / name).write_text(json.dumps(content))
    for inner in ("2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(made / inner)
    return made


def save_stanford(folder: Path, **metadata: Any) -> Path:
    """A tiny ColBERT as Stanford's library saves it; ``metadata`` is its artifact.metadata."""
    made, target = save_colbert(folder, "bert"), folder / "stanford"
    shutil.copytree(folder / "plain", target)
    body, dense = load_file(made / "model.safetensors"), load_file(made / "1_Dense" / "model.safetensors")
    tensors = {f"bert.{name}": tensor for name, tensor in body.items()} | dense
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    if metadata:
        (target / "artifact.metadata").write_text(json.dumps(metadata))
    return target
