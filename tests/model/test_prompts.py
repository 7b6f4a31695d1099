"""Prompts are those of sentence-transformers' encode, encode_query and encode_document, and what does not fit is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import everyday
from sentence_transformers import SentenceTransformer

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.model.card_prompts import CARDS
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prompts import Prompts, read_prompts
from kosbert_ray.model.spec import read_spec

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
Q, D, P = {"query": "질문: "}, {"document": "글: "}, {"passage": "본문: "}
E5 = "intfloat/multilingual-e5-base"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def configure(folder: Path, prompts: dict[str, Any] | None, default: str | None = None) -> None:
    content = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({}, None),
        (Q | D, None),
        (Q | P, None),  # "passage" is never used
        (Q | P, "passage"),
        (P | {"corpus": "말: "}, "corpus"),
        (Q, "query"),
        (D | {"query": None}, "query"),
        ({"query": "", "document": ""} | P, None),
    ],
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_method_gives_what_sentence_transformers_gives(
    folder: Path, prompts: dict[str, Any], default: str | None, include_prompt: bool
) -> None:
    configure(folder, prompts, default)
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling | {"include_prompt": include_prompt}))
    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    ours = Encoder.load(str(folder), FP32)
    texts = everyday()[:8]
    for method in ("encode", "encode_query", "encode_document", "encode"):
        np.testing.assert_allclose(getattr(ours, method)(texts), getattr(theirs, method)(texts), atol=2e-5, err_msg=method)


def test_a_given_prompt_wins_in_every_method(folder: Path) -> None:
    configure(folder, Q | D | P)
    for options, expected in (
        (SpecOptions(prompt="따로: "), "따로: "),
        (SpecOptions(prompt=""), ""),
        (SpecOptions(prompt_name="passage"), "본문: "),
        (SpecOptions(prompt="", prompt_name="passage"), ""),
    ):
        spec = read_spec(folder, options)
        assert {spec.prompt, spec.for_queries().prompt, spec.for_documents().prompt} == {expected}
    with pytest.raises(UsageError, match="no prompt 'nobody'; it has 'query', 'document', 'passage'"):
        read_spec(folder, SpecOptions(prompt_name="nobody"))


def resolved(prompts: dict[str, str], default: str | None = None, **options: str) -> Prompts:
    return read_prompts(Path("model"), {"prompts": prompts, "default_prompt_name": default}, SpecOptions(**options))


@pytest.mark.parametrize(
    ("model", "prompts", "message"),
    [
        (E5, resolved({}), "add --set 'model.prompt=\"passage: \"' (https://huggingface.co/intfloat/multilingual-e5-base)"),
        (f"s3://models/{E5.upper()}/", resolved({}), "its card asks for a prompt before documents"),
        (E5, resolved({}, prompt=""), None),
        (E5, resolved(D), None),
        ("multilingual-e5-base", resolved({}), None),
        ("BAAI/bge-base-en-v1.5", resolved({}), None),  # its card wants one for queries only
        ("a/b", resolved(Q), None),
        ("a/b", resolved(Q | P), "add --set model.prompt_name=passage to use it, or --set 'model.prompt=\"\"' to confirm"),
        ("a/b", resolved({"title": "제목: "}, "title"), "does not use the model's 'title'"),
        ("a/b", resolved({}), None),
    ],
)
def test_documents_that_seem_to_want_a_prompt_are_told(model: str, prompts: Prompts, message: str | None) -> None:
    told = prompts.document_warning(model)
    assert (told is None) if message is None else (told is not None and message in told)


@pytest.mark.parametrize(
    ("model", "prompts", "documents", "message"),
    [
        (E5, resolved({}), "passage: ", "add --prompt 'query: ' (https://huggingface.co/intfloat/multilingual-e5-base)"),
        (E5, resolved({}, prompt="query: "), "passage: ", None),
        ("BAAI/bge-base-en-v1.5", resolved({}), "", "its card asks for a prompt before queries"),
        ("a/b", resolved(Q | D), "글: ", None),
        ("a/b", resolved(Q), "", None),
        ("a/b", resolved(Q | D), "", "embedded without the model's document prompt '글: '"),
        ("a/b", resolved({"search_query": "q: "}), "", "add --prompt-name search_query to use it"),
        ("a/b", resolved({}), "글: ", "embedded with the prompt '글: ', and the model names none for queries"),
        ("a/b", resolved({}), "", None),
    ],
)
def test_queries_whose_prompt_does_not_fit_are_told(
    model: str, prompts: Prompts, documents: str, message: str | None
) -> None:
    told = prompts.query_warning(model, documents)
    assert (told is None) if message is None else (told is not None and message in told)


def test_a_prompt_is_described_briefly() -> None:
    assert resolved({}).described("") == "none"
    assert resolved(Q | P).described("") == "none; the model has 'passage' (model.prompt_name)"
    assert resolved(Q).described("") == "none"
    assert resolved(Q | D).described("글: ") == "'글: ' (the model's 'document')"
    assert resolved({}, prompt="x").described("x") == "'x'"


def test_every_card_has_an_owner_and_a_query_prompt() -> None:
    assert all(name.count("/") == 1 and query for name, (query, _) in CARDS.items())
    assert len({name.lower() for name in CARDS}) == len(CARDS)
