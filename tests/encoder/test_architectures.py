"""Architectures beyond the common encoders: sentence-transformers' vectors, or a refusal that names the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from architectures import DECODER, WIDE, save
from conftest import everyday
from models import HEADS, LAYERS, SIZE, WIDTH, save_model, save_transformer
from reference import cosines
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling
from zoo import BART, GPT2, T5

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.devices import pick_precision
from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
TEXTS = ["짧다", *everyday()[:30], " ".join(everyday()[:40])]


def expected(folder: Path, texts: list[str] = TEXTS, batch_size: int = 8) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    return model.encode(texts, batch_size=batch_size)


RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}


@pytest.mark.parametrize(("kind", "config"), [("Bart", BART), ("GPT2", GPT2)])
def test_a_plain_folder_tells_its_width_under_any_name(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path, kind, plain=True, **config)
    encoder = Encoder.load(str(folder), FP32)
    assert encoder.spec.dimension == WIDTH
    assert cosines(encoder.encode(TEXTS), expected(folder)).min() > 0.99999


def test_causality_is_the_layers_own_and_counts(tmp_path: Path) -> None:
    folder = save(tmp_path, "Llama", **DECODER)
    encoder = Encoder.load(str(folder), FP32)
    right = encoder.encode(TEXTS)
    for layer in encoder._engine.model.layers:
        layer.self_attn.is_causal = False
    assert cosines(encoder.encode(TEXTS), right).min() < 0.99


@pytest.mark.parametrize("kind", ["GPTNeoX", "Mistral"])
def test_openvino_keeps_causality_windows_and_groups(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = DECODER | {"sliding_window": 16} if kind == "Mistral" else SIZE | WIDE | {"max_position_embeddings": 256}
    folder = save(tmp_path, kind, **config)
    encoder = Encoder.load(str(folder), EncoderOptions(precision="fp32", device="cpu", engine="openvino"))
    assert encoder.engine == "openvino"
    assert cosines(encoder.encode(TEXTS), expected(folder)).min() > 0.9999


def test_in_bf16_a_model_that_cannot_compute_in_it_falls_back_or_is_refused_once(tmp_path: Path, monkeypatch) -> None:
    folder = save(tmp_path, "FNet", **SIZE, max_position_embeddings=256)
    with pytest.raises(ModelError, match=r"a fnet cannot compute in bf16 \(.*; use encoder.precision=fp32"):
        Encoder.load(str(folder), EncoderOptions(precision="bf16", device="cpu"))
    monkeypatch.setattr("kosbert_ray.encoder.encoder.pick_precision", lambda *_: "bf16")
    encoder = Encoder.load(str(folder), EncoderOptions(precision="auto", device="cpu"))
    assert encoder.precision == "fp32"
    assert any("cannot compute in bf16" in notice and notice.endswith("using fp32") for notice in encoder.notices)


def test_half_precision_is_not_chosen_for_a_model_that_overflows_in_it(bert: Path, tmp_path: Path, monkeypatch) -> None:
    """On a GPU of 2017 to 2018 (V100, T4), whose capability this machine only claims."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    assert pick_precision("auto", "cuda") == "fp16"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (6, 1))
    assert pick_precision("auto", "cuda") == "fp32"
    monkeypatch.setattr("kosbert_ray.encoder.encoder.pick_precision", lambda *_: "fp16")
    entry = table.ENGINES[table.TORCH]
    monkeypatch.setitem(table.ENGINES, table.TORCH, replace(entry, precisions=entry.precisions | {"cpu": ("fp32", "fp16")}))
    options = EncoderOptions(precision="auto", device="cpu", engine="torch")
    found = Encoder.load(str(bert), options)
    assert found.precision == "fp16" and cosines(found.encode(TEXTS), expected(bert)).min() > 0.999
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")

    def told(name: str, rows: slice, message: str) -> None:
        changed = weights[name].clone()
        changed[rows] *= 1e9  # finite in fp32 only
        save_file(weights | {name: changed}, folder / "model.safetensors", {"format": "pt"})
        found = Encoder.load(str(folder), options)
        assert found.precision == "fp32" and np.isfinite(found.encode(TEXTS)).all()
        assert any(message in notice and notice.endswith("using fp32") for notice in found.notices)

    told("encoder.layer.0.intermediate.dense.weight", slice(None), "every vector is NaN or Inf in fp16")
    (period,) = found.tokenizer(pa.array(["."])).ids[1:-1]
    told("embeddings.word_embeddings.weight", slice(period, period + 1), "overflows in fp16")


def test_a_model_that_remembers_earlier_texts_is_refused(tmp_path: Path) -> None:
    sparse = {"max_position_embeddings": 1024, "block_size": 16, "num_random_blocks": 1, "initializer_range": 0.6}
    folder = save(tmp_path, "BigBird", length=800, **SIZE, **sparse)
    with pytest.raises(
        ModelError, match='a different vector for a text after a shorter one .*; set "attention_type": "original_full" in'
    ):
        Encoder.load(str(folder), FP32)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"attention_type": "original_full"}))
    long = [" ".join(everyday()[start : start + 60]) for start in range(0, 120, 40)]
    vectors = Encoder.load(str(folder), FP32).encode([*TEXTS, *long])
    assert cosines(vectors, expected(folder, [*TEXTS, *long])).min() > 0.99999


LIMITS: list[tuple[str, dict[str, Any], int]] = [
    ("MPNet", {"max_position_embeddings": 34}, 32),
    ("Roberta", {"max_position_embeddings": 34}, 32),
    ("Data2VecText", {"max_position_embeddings": 34}, 32),
    ("IBert", {"max_position_embeddings": 34}, 32),
    ("Xmod", {"max_position_embeddings": 34, "languages": ("ko",), "default_language": "ko"}, 32),
    ("Luke", {"max_position_embeddings": 34, "entity_vocab_size": 10, "entity_emb_size": 16}, 32),
    ("Longformer", {"max_position_embeddings": 34, "attention_window": 8}, 32),
    ("DistilBert", {"max_position_embeddings": 32}, 32),
    ("Electra", {"max_position_embeddings": 32, "embedding_size": 32}, 32),
]


@pytest.mark.parametrize(("kind", "config", "length"), LIMITS, ids=[row[0] for row in LIMITS])
def test_the_usable_length_is_that_of_the_position_embeddings(
    kind: str, config: dict[str, Any], length: int, tmp_path: Path
) -> None:
    size = {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 64} if kind == "DistilBert" else SIZE
    folder = save(tmp_path, kind, plain=True, length=500, **size, **config)
    assert read_spec(folder).max_seq_length == length
    vectors = Encoder.load(str(folder), FP32).encode([TEXTS[-1], " ".join(everyday()[9:50])])
    assert np.isfinite(vectors).all()


def test_a_length_that_only_the_model_knows_to_be_too_long_is_refused_at_the_start(tmp_path: Path, monkeypatch) -> None:
    folder = save(tmp_path, "Roberta", plain=True, length=500, **SIZE, max_position_embeddings=34)
    monkeypatch.setattr("kosbert_ray.model.lengths.OFFSET_POSITIONS", ())
    with pytest.raises(ModelError, match="its position embeddings take 32 tokens, not 34; set model.max_seq_length=32"):
        Encoder.load(str(folder), FP32)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("DebertaV2", SIZE | RELATIVE | {"position_biased_input": False, "max_position_embeddings": 64}),
        ("ModernBert", SIZE | {"max_position_embeddings": 64, "pad_token_id": 0, "local_attention": 32}),
        ("T5", T5 | {"model": "T5EncoderModel"}),
    ],
)
def test_a_length_is_not_cut_to_positions_that_are_no_table(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path, kind, length=128, **config)
    edit(SETTINGS, max_seq_length=128)(folder)
    assert read_spec(folder).max_seq_length == 128
    assert read_spec(folder, SpecOptions(max_seq_length=150)).max_seq_length == 150
    assert cosines(Encoder.load(str(folder), FP32).encode(TEXTS), expected(folder)).min() > 0.99999


def test_without_any_length_texts_are_cut_at_512_with_a_notice(tmp_path: Path) -> None:
    folder = save(tmp_path, "T5", plain=True, **T5, model="T5EncoderModel")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 10**30}))
    spec = read_spec(folder)
    assert spec.max_seq_length == 512
    assert any("gives no maximum length; truncating texts to 512" in notice for notice in spec.notices)


@pytest.mark.parametrize("kind", ["GPT2", "XLM"])
def test_token_type_ids_are_passed_where_they_count_and_the_tokenizer_gives_them(kind: str, tmp_path: Path) -> None:
    xlm = {"emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": 256, "embed_init_std": 0.2}
    folder = save(tmp_path, kind, **(GPT2 if kind == "GPT2" else xlm))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    found = []
    for names in (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_input_names": names}))
        found.append(Encoder.load(str(folder), FP32).encode(TEXTS))
        assert cosines(found[-1], expected(folder)).min() > 0.99999
    assert cosines(*found).min() < 0.99


def test_a_tokenizer_that_numbers_segments_is_refused(tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"model_input_names": ["input_ids", "token_type_ids"], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="gives token_type_ids other than 0"):
        Encoder.load(str(folder), FP32).encode(["가"])


def test_weights_that_are_no_part_of_the_architecture_are_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_transformer("bert", everyday(), tmp_path / "plain")
    state = load_file(folder / "model.safetensors")
    more = {"layer_norm.weight": torch.zeros(2, 2), "cls.predictions.bias": torch.zeros(2)}
    save_file(state | more, folder / "model.safetensors", {"format": "pt"})
    (notice,) = Encoder.load(str(folder), FP32).notices[1:]
    assert "1 weights are not part of a bert and not used (layer_norm.weight, …)" in notice


# -- refusals ------------------------------------------------------------------------------------------------------


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
SETTINGS, OWN = "sentence_bert_config.json", "config_sentence_transformers.json"
HIDDEN = {"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}}
MESSAGE = {"message": {"method": "forward", "method_output_name": "last_hidden_state", "format": "structured"}}
REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("lfs weights", lambda f: (f / "model.safetensors").write_text(POINTER), "model.safetensors: is a Git LFS pointer"),
    ("lfs tokenizer", lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json: is a Git LFS pointer"),
    ("lfs config", lambda f: (f / "config.json").write_text(POINTER), "is a Git LFS pointer, not the file itself; run git"),
    (
        "adapter beside weights",
        edit("adapter_config.json", r=8),
        "adapter_config.json: an adapter beside complete weights; delete adapter_config.json if",
    ),
    ("modality text", edit(SETTINGS, modality_config=HIDDEN), "modality_config.text .* is not supported, and the vectors"),
    ("chat template", edit(SETTINGS, modality_config=MESSAGE), "modality_config.message"),
    ("config_kwargs", edit(SETTINGS, config_kwargs={"num_hidden_layers": 1}), "config_kwargs.num_hidden_layers"),
    ("model_args", edit(SETTINGS, model_args={"x": 1}), "model_args.x is not supported"),
    ("tokenizer_args", edit(SETTINGS, tokenizer_args={"model_max_length": 9}), "tokenizer_args.model_max_length"),
    ("processing_kwargs", edit(SETTINGS, processing_kwargs={"text": {"max_length": 4}}), "processing_kwargs is not"),
    ("other task", edit(SETTINGS, transformer_task="fill-mask"), "transformer_task fill-mask"),
    ("sparse encoder", edit(OWN, model_type="SparseEncoder"), "a SparseEncoder with these modules is not supported"),
    ("encoder-decoder", edit("config.json", model_type="pegasus"), "models of type pegasus are not supported"),
    ("width", edit("1_Pooling/config.json", embedding_dimension=65), "vectors have 64 numbers instead of 65"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_would_change_vectors_is_refused_by_name(
    name: str, change: Callable[[Path], None], message: str, tmp_path: Path, bert: Path
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    change(folder)
    with pytest.raises(ModelError, match=message) as raised:
        Encoder.load(str(folder), FP32, SpecOptions(allow_remote_code=True))
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", everyday(), tmp_path_factory.mktemp("bert"))


def test_a_router_of_one_route_is_that_route_and_others_are_refused(bert: Path, tmp_path: Path) -> None:
    inner = SentenceTransformer(str(bert), device="cpu")
    one = Router.for_query_document([inner[0], inner[1]], [inner[0], inner[1]])
    SentenceTransformer(modules=[one, Normalize()], device="cpu").save_pretrained(str(tmp_path / "one"))
    model = prepare(ModelSource(str(tmp_path / "one"))).kept()
    assert cosines(Encoder(model.spec(), FP32).encode(TEXTS), expected(tmp_path / "one")).min() > 0.999999
    assert model.folder != tmp_path / "one"
    two = Router.for_query_document([inner[0], inner[1]], [inner[0], Pooling(64, "cls")])
    SentenceTransformer(modules=[two], device="cpu").save_pretrained(str(tmp_path / "two"))
    with pytest.raises(ModelError, match=r"router_config.json: texts take other modules for query than for document"):
        read_spec(tmp_path / "two")


def test_a_plain_causal_language_model_is_pooled_as_sentence_transformers_does(tmp_path: Path) -> None:
    folder = save(tmp_path, "Llama", plain=True, **DECODER, model="LlamaForCausalLM")
    spec = read_spec(folder)
    assert spec.pooling == ("lasttoken",)
    assert any("using lasttoken pooling" in notice for notice in spec.notices)
    assert cosines(Encoder.load(str(folder), FP32).encode(TEXTS), expected(folder)).min() > 0.999999
    assert read_spec(folder, SpecOptions(pooling="mean")).pooling == ("mean",)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ModelError, match=r"is a chat model, .*; set model.pooling \(lasttoken or mean\)"):
        read_spec(folder)
    assert read_spec(folder, SpecOptions(pooling="lasttoken")).pooling == ("lasttoken",)
    edit("config.json", is_causal=False)(folder)
    assert read_spec(folder).pooling == ("mean",)


def test_code_is_ignored_where_transformers_has_it_and_otherwise_asked_for(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})(folder)
    assert not read_spec(folder).remote_code
    edit("config.json", auto_map={"AutoModel": "modeling_x.X"})(folder)
    with pytest.raises(
        ModelError, match="set model.allow_remote_code=true, or set it to false to run transformers' own bert"
    ):
        read_spec(folder)
    assert read_spec(folder, SpecOptions(allow_remote_code=True)).remote_code
    spec = read_spec(folder, SpecOptions(allow_remote_code=False))
    assert not spec.remote_code
    assert any("does not run; transformers' bert does" in notice for notice in spec.notices)
    edit("config.json", model_type="nomic_bert")(folder)
    assert not read_spec(folder).remote_code


def test_settings_that_change_nothing_are_taken(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    edit(SETTINGS, model_args={"torch_dtype": "float32"}, config_args={}, unpad_inputs=True, query_length=None)(folder)
    assert read_spec(folder).notices == ()


def test_a_models_own_truncate_dim_is_kept_as_sentence_transformers_keeps_it(tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path, normalize=True)
    edit(OWN, truncate_dim=16)(folder)
    encoder = Encoder.load(str(folder), FP32)
    assert encoder.spec.dimension == 16 and not encoder.spec.normalized
    np.testing.assert_allclose(encoder.encode(TEXTS), expected(folder), atol=2e-6)
