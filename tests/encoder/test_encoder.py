"""Vectors are those of sentence-transformers on the same weights, packed or not, in every precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import everyday
from models import ARCHITECTURES, WIDTH, save_model, save_transformer
from reference import cosines, reference
from sentence_transformers import SentenceTransformer

from kosbert_ray.encoder.devices import device_memory, pick_device, pick_precision
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.engines import attention
from kosbert_ray.encoder.options import EncoderOptions, require_possible
from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.model.options import SpecOptions

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
BF16 = EncoderOptions(precision="bf16", device="cpu", engine="torch")


@pytest.fixture(scope="module")
def real_texts(data: Path) -> list[str]:
    """900 real texts, from single words to several pages."""
    short = pq.read_table(data / "korpus_short" / "part-00003.parquet")["text"].to_pylist()[:780]
    long = pq.read_table(data / "korpus_long" / "part-00003.parquet")["text"].to_pylist()[:120]
    return short + long


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parity_with_sentence_transformers_on_real_texts(kind: str, real_texts: list[str], tmp_path: Path) -> None:
    folder = save_model(kind, everyday(), tmp_path)
    expected = reference(folder, real_texts)
    for options, least in ((FP32, 0.999999), (BF16, 0.9999)):
        encoder = Encoder.load(str(folder), options)
        assert encoder.attention == "packed"
        assert encoder.notices == []
        vectors = encoder.encode(real_texts)
        assert vectors.dtype == np.float32
        assert vectors.shape == expected.shape
        assert cosines(vectors, expected).min() >= least


HEADS = {
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "sqrt": {"pooling": "mean_sqrt_len_tokens"},
    "several": {"pooling": ("cls", "mean")},
    "dense": {"dense": 24},
    "normalize": {"dense": 24, "normalize": True},
    "lower": {"do_lower_case": True},
    "prompt": {"prompts": {"query": "질문: ", "passage": "글: "}, "default_prompt_name": "passage"},
    "prompt apart": {
        "prompts": {"passage": "글: "},
        "default_prompt_name": "passage",
        "include_prompt": False,
    },
}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_what_sentence_transformers_gives(head: str, tmp_path: Path) -> None:
    texts = ["Hello KOREA 안녕", *everyday()[:200]]
    folder = save_model("bert", everyday(), tmp_path, **HEADS[head])
    expected = reference(folder, texts)
    vectors = Encoder.load(str(folder), FP32).encode(texts)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_a_prompt_is_chosen_by_name_or_given(tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path, prompts={"query": "질문: "})
    texts = everyday()[:20]
    by_name = Encoder.load(str(folder), FP32, SpecOptions(prompt_name="query")).encode(texts)
    given = Encoder.load(str(folder), FP32, SpecOptions(prompt="질문: ")).encode(texts)
    np.testing.assert_array_equal(by_name, given)
    np.testing.assert_allclose(by_name, reference(folder, texts, prompt_name="query"), atol=2e-6)
    assert not np.allclose(by_name, Encoder.load(str(folder), FP32).encode(texts))
    with pytest.raises(UsageError, match="no prompt 'nobody'; it has"):
        Encoder.load(str(folder), FP32, SpecOptions(prompt_name="nobody"))


def test_a_plain_transformers_folder_is_mean_pooled_with_a_notice(tmp_path: Path) -> None:
    folder = save_transformer("bert", everyday(), tmp_path / "plain")
    encoder = Encoder.load(str(folder), FP32)
    assert "mean pooling" in encoder.notices[0]
    np.testing.assert_allclose(encoder.encode(everyday()[:50]), reference(folder, everyday()[:50]), atol=2e-6)


def test_max_seq_length_is_kept_and_can_be_lowered_but_not_raised_over_the_positions(tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path, length=64)
    text = " ".join(everyday()[:40])
    model = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(Encoder.load(str(folder), FP32).encode([text]), model.encode([text]), atol=2e-6)
    model.max_seq_length = 16
    lowered = Encoder.load(str(folder), FP32, SpecOptions(max_seq_length=16))
    np.testing.assert_allclose(lowered.encode([text]), model.encode([text]), atol=2e-6)
    with pytest.raises(UsageError, match="64 positions"):
        Encoder.load(str(folder), FP32, SpecOptions(max_seq_length=65))


def test_vectors_do_not_depend_on_company_order_or_duplicates(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), FP32)
    texts = everyday()[:100]
    vectors = encoder.encode(texts)
    again = encoder.encode(texts[::-1] + texts + texts[:1] * 5)
    assert again.shape == (205, encoder.spec.dimension)
    assert cosines(again[100:200], vectors).min() > 0.999999
    assert np.array_equal(again[:100][::-1], again[100:200]), "one text, one vector, in one slice"
    assert np.array_equal(encoder.encode(texts), vectors), "the same slice gives the same bytes"
    assert encoder.encode([]).shape == (0, encoder.spec.dimension)


def test_the_token_budget_changes_nothing_but_rounding(tiny_model: Path) -> None:
    texts = everyday()[:100]
    small = Encoder.load(str(tiny_model), EncoderOptions(precision="fp32", device="cpu", token_budget=16)).encode(texts)
    large = Encoder.load(str(tiny_model), EncoderOptions(precision="fp32", device="cpu", token_budget=100_000)).encode(
        texts
    )
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_where_a_packed_batch_changes_vectors_the_encoder_falls_back_and_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Encoder.load(str(tiny_model), FP32).encode(everyday()[:50])

    def broken(module, query, key, value, *_, **__):
        return value.transpose(1, 2), None

    monkeypatch.setattr(attention, "packed_attention", broken)
    encoder = Encoder.load(str(tiny_model), FP32)
    assert encoder.attention == "one_length"
    assert "self-check: a text's vector changes in a packed batch" in encoder.notices[-1]
    np.testing.assert_allclose(encoder.encode(everyday()[:50]), right, atol=1e-5)


def test_an_architecture_without_pluggable_attention_runs_by_length_with_a_notice(tmp_path: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    folder = save_transformer("bert", everyday(), tmp_path / "plain")
    torch.manual_seed(1)
    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    MPNetModel(MPNetConfig(vocab_size=2000, max_position_embeddings=258, **size)).save_pretrained(folder)
    encoder = Encoder.load(str(folder), FP32)
    assert encoder.attention == "one_length"
    assert any("mpnet has no pluggable attention" in notice for notice in encoder.notices)
    np.testing.assert_allclose(encoder.encode(everyday()[:50]), reference(folder, everyday()[:50]), atol=1e-5)


def test_a_folder_whose_weights_are_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_transformer("bert", everyday(), tmp_path / "plain")
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing"):
        Encoder.load(str(folder), FP32)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be read|cannot load the model"):
        Encoder.load(str(folder), FP32)


def test_a_device_or_precision_that_is_not_here_is_a_usage_error() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no cuda device"):
            pick_device("cuda")
    for impossible, message in (
        (
            EncoderOptions(precision="fp16", device="cpu", engine="torch"),
            "fp16 needs encoder.engine=torch on cuda or mps; torch on cpu supports",
        ),
        (
            EncoderOptions(precision="int8", device="cuda", engine="openvino"),
            "openvino runs on cpu only, and the device is cuda",
        ),
        (EncoderOptions(precision="int8", engine="torch"), r"int8 needs encoder\.engine=openvino"),
        (
            EncoderOptions(precision="bf16", device="mps", engine="openvino"),
            "openvino runs on cpu only, and the device is mps",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            require_possible(impossible)
    assert pick_precision("auto", "cpu") in ("bf16", "fp32")


@pytest.mark.parametrize("normalize", [True, False])
def test_truncated_vectors_are_those_of_sentence_transformers(tmp_path: Path, normalize: bool) -> None:
    model = save_model("bert", everyday(), tmp_path, normalize=normalize)
    texts = everyday()[:50]
    theirs = SentenceTransformer(str(model), truncate_dim=24, device="cpu").encode(texts, normalize_embeddings=normalize)
    ours = Encoder.load(str(model), FP32, SpecOptions(truncate_dim=24))
    assert ours.spec.dimension == 24 and ours.spec.normalized == normalize
    assert np.abs(ours.encode(texts) - theirs).max() < 1e-5
    with pytest.raises(UsageError, match="truncate_dim is 65, but its vectors have 64"):
        Encoder.load(str(model), FP32, SpecOptions(truncate_dim=65))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"text", "not bytes"),
        (np.array([1.5]), "not float at index 0"),
        (["비가 온다.", None], "not NoneType at index 1"),
        (3, "not int"),
        (pa.array(["가", None]), "not a null"),
        (pa.array([1]), "not an array of int64"),
    ],
)
def test_what_is_no_list_of_texts_is_a_usage_error(tiny_model: Path, texts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"texts: a string or a list of strings is needed, {message}"):
        Encoder.load(str(tiny_model), FP32).encode(texts)


def test_a_single_text_has_a_single_vector_and_every_library_a_list(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), FP32)
    texts = ["비가 온다.", "눈이 온다.", "바람이 분다."]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(encoder.encode(texts[1]), vectors[1], atol=1e-6)
    for same in (pd.Series(texts, index=[7, 8, 9]), np.array(texts), np.array(texts, object), pl.Series(texts)):
        np.testing.assert_array_equal(encoder.encode(same), vectors)
    assert encoder.encode([]).shape == (0, vectors.shape[1])


def test_options_of_sentence_transformers_encode(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    prompts = {"query": "질문: ", "passage": "글: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    texts = everyday()[:3]
    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    encoder = Encoder.load(str(folder), FP32)
    for options in (
        {"prompt_name": "passage"},
        {"prompt": "무엇: "},
        {"normalize_embeddings": True},
        {"prompt_name": "query"},
    ):
        np.testing.assert_allclose(encoder.encode(texts, **options), theirs.encode(texts, **options), atol=1e-5)
    found = encoder.encode_query(texts, normalize_embeddings=True)
    np.testing.assert_allclose(found, theirs.encode_query(texts, normalize_embeddings=True), atol=1e-5)
    with pytest.raises(UsageError, match="prompt_name: the model has no prompt 'nobody'; it has query, passage"):
        encoder.encode(texts, prompt_name="nobody")
    many = [f"{text} {number}" for number in range(5) for text in everyday()]
    np.testing.assert_allclose(encoder.encode(many, show_progress_bar=True), encoder.encode(many), atol=1e-5)
    assert "100%" in capsys.readouterr().err
    with pytest.raises(UsageError):
        encoder.encode(["가", 1])  # type: ignore[list-item]


def test_texts_may_be_a_tuple_or_an_arrow_array(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), FP32)
    expected = encoder.encode(["가", "나"])
    for texts in (("가", "나"), pa.array(["가", "나"]), pa.chunked_array([["가"], ["나"]])):
        np.testing.assert_array_equal(encoder.encode(texts), expected)


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_loaded(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    assert device_memory("cpu", tmp_path / "memory.max") == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory("cpu", tmp_path / "memory.max") == device_memory("cpu", tmp_path / "nothing") > 2**28
    monkeypatch.setattr("kosbert_ray.encoder.encoder.device_memory", lambda _: 1000)
    with pytest.raises(
        ModelError, match=r"its weights take [\d.]+ [kM]B in fp32, and cpu has [\d.]+ (bytes|[kM]B) of memory; use a device"
    ):
        Encoder.load("bundled:kosbert-mini", EncoderOptions(precision="fp32", device="cpu"))
