"""Token vectors are those of sentence-transformers' MultiVectorEncoder, whatever batches they are computed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import everyday
from multi_vector_models import DIMENSION, save_colbert
from reference import cosines
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from tokenizers import Tokenizer
from zoo import ZOO, save

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError, UsageError

TEXTS = [*everyday()[:30], "비, 눈. 바람!", " ".join(everyday()[40:60]), "가"]
FIXED = {"strategy": "fixed", "length": 16}
PARITY = 0.999999


def load(folder: Path, **options: Any) -> Encoder:
    return Encoder.load(str(folder), EncoderOptions(precision="fp32", device="cpu", **options))


def require_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    assert cosines(np.concatenate(found), np.concatenate(expected)).min() >= PARITY


def require_parity(folder: Path) -> Encoder:
    reference, encoder = MultiVectorEncoder(str(folder), device="cpu"), load(folder)
    for task in ("document", "query", None):
        require_same(
            encoder.encode_multi_vector(TEXTS, task=task),
            reference.encode(TEXTS, task=task, batch_size=8, convert_to_numpy=True, prompt_name=task),
        )
    return encoder


@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlm-roberta"])
def test_colbert(kind: str, tmp_path: Path) -> None:
    encoder = require_parity(save_colbert(tmp_path, kind, document_length=40, query_length=20))
    assert (encoder.engine, encoder.attention, encoder.spec.kinds) == ("torch", "packed", ("multi_vector",))
    found = encoder.encode_multi_vector(TEXTS[0])
    assert found[0].dtype == np.float16
    assert found[0].shape[1] == DIMENSION


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("attend", [False, True])
def test_queries_are_expanded(kind: str, attend: bool, tmp_path: Path) -> None:
    folder = save_colbert(tmp_path, kind, (".", ",", "!"), query_expansion={**FIXED, "attend": attend})
    encoder = require_parity(folder)
    assert {len(one) for one in encoder.encode_multi_vector(TEXTS, task="query")} == {16}


def test_documents_leave_out_the_skiplist(tmp_path: Path) -> None:
    encoder = require_parity(save_colbert(tmp_path, "bert", (".", ",", "!", "없는말")))
    with_marks, without = encoder.encode_multi_vector(["비, 눈. 바람.", "비 눈 바람"], task="document")
    assert len(with_marks) == len(without)


def test_queries_are_extended_at_least(tmp_path: Path) -> None:
    expansion = {"strategy": "min", "length": 16, "attend": True, "token": "[SEP]"}
    encoder = require_parity(save_colbert(tmp_path, "bert", query_expansion=expansion, query_length=30))
    lengths = {len(one) for one in encoder.encode_multi_vector(TEXTS, task="query")}
    assert min(lengths) == 16
    assert max(lengths) == 30


def test_token_pooling(tmp_path: Path) -> None:
    encoder = load(save_colbert(tmp_path, "bert", pool_factor=2))
    every = encoder.encode_multi_vector(TEXTS, task="query")  # queries are not pooled
    found = encoder.encode_multi_vector(TEXTS, task="document", prompt_name="query")
    reference = HierarchicalTokenPooling(2)
    require_same(found, [reference.pool([torch.from_numpy(one).float()])[0].numpy() for one in every])
    assert len(np.concatenate(found)) < 0.6 * len(np.concatenate(every))


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_model_without_a_head_gives_its_hidden_states(kind: str, tmp_path: Path) -> None:
    folder = save(ZOO[kind], tmp_path)
    body = Transformer(str(folder), max_seq_length=100)
    modules = [body, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    expected = MultiVectorEncoder(modules=modules, device="cpu").encode(TEXTS, convert_to_numpy=True)
    encoder = load(folder)
    assert encoder.spec.kinds == ("dense", "multi_vector")
    require_same(encoder.encode_multi_vector(TEXTS), expected)


def test_one_pass_gives_what_two_give(tmp_path: Path) -> None:
    encoder = load(save(ZOO["bert"], tmp_path), engine="torch")
    tokens = encoder.tokenizer(TEXTS)
    both = encoder.encode_tokens(tokens, kinds=("dense", "multi_vector"))
    assert np.array_equal(both.vectors, encoder.encode_tokens(tokens).vectors)
    require_same(both.ragged["multi_vector"].take(both.rows).to_list(), encoder.encode_multi_vector(TEXTS))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sentence_bert_config.json", {"query_expansion": [1]}, "query_expansion"),
        (
            "sentence_bert_config.json",
            {"query_expansion": {**FIXED, "length": -4}},
            "length -4 must be a whole number above 0",
        ),
        ("sentence_bert_config.json", {"query_expansion": {**FIXED, "length": 10**9}}, "of at most 8,192"),
        ("sentence_bert_config.json", {"document_length": "abc"}, "document_length 'abc' must be a whole number"),
        ("2_MultiVectorMask/config.json", {"skiplist_words": [1]}, "skiplist_words of MultiVectorMask must be a list"),
    ],
)
def test_broken_configs_are_named(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save_colbert(tmp_path, "bert")
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("task", ["query", "document"])
def test_a_token_that_the_model_does_not_know_is_named(task: Any, tmp_path: Path) -> None:
    folder = save_colbert(tmp_path, "bert", (), query_expansion=FIXED)
    path = next(folder.rglob("tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["㋿㋿"])
    tokenizer.save(str(path))
    with pytest.raises(ModelError, match=r"text 1: token \d+ is beyond the model's \d+"):
        load(folder).encode_multi_vector(["가", "㋿㋿ 나", "다"], task=task)


def test_wrong_tasks_are_refused(tmp_path: Path) -> None:
    encoder = load(save_colbert(tmp_path, "bert"))
    with pytest.raises(UsageError, match="task: 'foo' is not known; choose query or document"):
        encoder.encode_multi_vector(["가"], task="foo")  # type: ignore[arg-type]
