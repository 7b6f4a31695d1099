"""Every kind of model in the zoo gives sentence-transformers' vectors, on PyTorch and on OpenVINO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import everyday
from models_page import PAGE, page
from reference import cosines
from sentence_transformers import SentenceTransformer
from zoo import LENGTH, ZOO, Row, save, tokenizer

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.engines import attention
from kosbert_ray.encoder.engines.base import PrecisionUnfit
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.spec import read_spec

PROMPT = "질의: "
PARITY = 0.999999
WRONG = 0.99
LONG = " ".join(everyday()[:12])


def texts(row: Row) -> list[str]:
    """One token, two of equal length, longer than two windows, longer than the limit, and none."""
    words = tokenizer(row.tokenizer)
    first = next(text for text in (item[:1] for item in everyday()) if len(words.tokenize(text)) == 1)
    equal = [first + "가", "가" + first]
    window = words.decode(words(LONG, add_special_tokens=False, truncation=False)["input_ids"][:50])
    long = " ".join(everyday()[20:60])
    assert len(words.tokenize(window)) > 2 * 16
    assert len(words.tokenize(long)) > LENGTH
    empty = [""] if len(words("")["input_ids"]) else []
    return [first, *equal, *everyday()[:6], window, long, *empty]


def expected(folder: Path, row: Row, pooling: str | None = None) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    if pooling:
        model[1].pooling_mode = pooling
    # One text at a time: some architectures give other vectors to padded texts.
    found: np.ndarray = model.encode(texts(row), batch_size=1, prompt=None if row.include_prompt else PROMPT)
    return found


def encoder(folder: Path, row: Row, **options: str) -> Encoder:
    chosen = EncoderOptions(**{"precision": "fp32", "device": "cpu", "engine": "torch"} | options)
    return Encoder.load(str(folder), chosen, SpecOptions(prompt=None if row.include_prompt else PROMPT))


@pytest.mark.parametrize("name", ZOO)
def test_vectors_are_those_of_sentence_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ZOO[name]
    folder = save(row, tmp_path)
    right = expected(folder, row)
    ours = encoder(folder, row)
    assert ours.attention == row.attention, ours.notices
    found = ours.encode(texts(row))
    assert np.isfinite(found).all()
    there = np.abs(right).sum(1) > 0  # sentence-transformers gives zeros where nothing but the prompt is left of a text
    assert there.sum() >= len(right) - 1
    assert cosines(found, right)[there].min() > PARITY
    # The same comparison fails for another pooling, another direction of attention, and attention without windows.
    if len(row.pooling) == 1:
        other = "mean" if row.pooling[0] in ("cls", "lasttoken") else "cls"
        assert np.nanmin(cosines(expected(folder, row, other), right)) < WRONG
    if row.attention == "packed":
        causality = attention.causality
        monkeypatch.setattr(attention, "causality", lambda *arguments: not causality(*arguments))
        assert np.nanmin(cosines(ours.encode(texts(row)), right)) < WRONG
        monkeypatch.undo()
        if {"sliding_window", "local_attention"} & row.config.keys():
            reach = attention.reach_mask
            monkeypatch.setattr(attention, "reach_mask", lambda at, other, _, causal: reach(at, other, None, causal))
            assert cosines(ours.encode(texts(row)), right).min() < WRONG


def few(names: Iterable[str], usual: set[str]) -> list[Any]:
    """Names of rows of which only the usual ones are tested by default: all of them take minutes."""
    return [name if name in usual else pytest.param(name, marks=pytest.mark.slow) for name in names]


OPENVINO = few(
    (name for name, row in ZOO.items() if row.openvino),
    {"qwen3", "gemma3, bidirectional", "gpt_neox, weighted", "bert, layer norm"},
)
BF16 = few((name for name in ZOO if name != "fnet"), {"qwen3", "mistral", "llama", "gemma3, bidirectional", "bert, cls"})


@pytest.mark.parametrize("name", OPENVINO)
def test_openvino_gives_the_same_vectors(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = ZOO[name]
    folder = save(row, tmp_path)
    ours = encoder(folder, row, engine="openvino")
    assert ours.engine == "openvino"
    assert cosines(ours.encode(texts(row)), expected(folder, row)).min() > PARITY


@pytest.mark.parametrize(
    "name",
    few([name for name in ZOO if name != "fnet"], {"qwen3", "mistral", "llama", "gemma3, bidirectional", "bert, cls"}),
)
def test_in_bf16_rounding_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    row = ZOO[name]
    folder = save(row, tmp_path)
    right = expected(folder, row)
    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "bfloat16"})
    there = np.abs(right).sum(1) > 0
    deviation = 1 - cosines(theirs.encode(texts(row), batch_size=1)[there], right[there])
    ours = encoder(folder, row, precision="bf16")
    assert ours.attention == row.attention, ours.notices
    assert (1 - cosines(ours.encode(texts(row))[there], right[there])).max() < 2 * deviation.max() + 1e-4


def test_what_cannot_compute_in_bf16_is_named(tmp_path: Path) -> None:
    row = ZOO["fnet"]
    with pytest.raises(PrecisionUnfit, match=r"a fnet cannot compute in bf16 .*; use encoder.precision=fp32"):
        encoder(save(row, tmp_path), row, precision="bf16")


def test_a_missing_end_token_is_appended_where_the_tokenizers_config_asks_for_it(tmp_path: Path) -> None:
    from tokenizers import processors

    row = Row("Mistral", (), ZOO["mistral"].config, ("lasttoken",), "llama", ("normalize",))
    folder = save(row, tmp_path)
    plain = encoder(folder, row)
    assert not plain.tokenizer.ends_with_special
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"add_eos_token": true,', 1))
    mended = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    backend = mended.tokenizer.backend_tokenizer
    ends = [("<s>", mended.tokenizer.bos_token_id), ("</s>", mended.tokenizer.eos_token_id)]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    ours = encoder(folder, row)
    assert ours.tokenizer.ends_with_special
    found = ours.encode(texts(row))
    assert cosines(found, mended.encode(texts(row), batch_size=1)).min() > PARITY
    assert cosines(found, plain.encode(texts(row))).min() < WRONG


def test_sharded_weights_and_the_pooling_of_a_row_are_what_it_says(tmp_path: Path) -> None:
    folder = save(ZOO["qwen3, sharded with a language model's head"], tmp_path)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert read_spec(folder).pooling == ("lasttoken",)


def test_the_page_of_models_is_that_of_the_zoo() -> None:
    assert PAGE.read_text("utf-8") == page(), "run make docs-generate"
