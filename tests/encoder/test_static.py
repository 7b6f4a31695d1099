"""Static embedding models: the vectors of sentence-transformers, without torch, for each shape of folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Run, everyday
from models import BERT_TOKENS, VOCABULARY, WIDTH, pickle_weights
from reference import cosines
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.plain_speed import plain_bytes_per_second
from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.model.files import model_files
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.parameters import computing_parameters
from kosbert_ray.model.spec import read_spec
from kosbert_ray.model.static_table import read_table
from kosbert_ray.run.executors.choice import choose

UNKNOWN = "𓀀"
LONG = " ".join(everyday() * 2)  # more tokens than are gathered at a time
TEXTS = ["", UNKNOWN, f"[CLS] {UNKNOWN} 비가 온다.", *everyday()[:40], LONG]
LIST = [
    {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}
]  # as model2vec writes it


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A WordPiece with special tokens that a static model must not add."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=BERT_TOKENS, show_progress=False)
    made.train_from_iterator(everyday(), trainer)
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.enable_padding()
    return made


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def save_static(tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model that sentence-transformers saves, with all modules that one may have."""
    table = StaticEmbedding(tokenizer, embedding_weights=normal(tokenizer.get_vocab_size(), WIDTH).to(dtype))
    torch.manual_seed(11)
    modules = [table, Dense(WIDTH, 32).to(dtype), Dense(32, 32, use_residual=True).to(dtype), Normalize()]
    prompts = {"query": "질문: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder


def save_model2vec(tokenizer: Tokenizer, folder: Path, listed: bool, normalize: bool = True) -> Path:
    """A model with a reduced vocabulary, as model2vec saves it; ``listed`` says whether it has a modules.json."""
    folder.mkdir()
    ids = tokenizer.get_vocab_size()
    mapping = torch.arange(ids) % 300
    tensors = {"embeddings": normal(300, WIDTH).half(), "mapping": mapping.int(), "weights": normal(ids).abs().double()}
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": normalize, "seq_length": 1000000}
    (folder / "config.json").write_text(json.dumps(config))
    if listed:
        (folder / "modules.json").write_text(json.dumps(LIST))
    return folder


def save_truncating(tokenizer: Tokenizer, folder: Path) -> Path:
    """A model whose tokenizer.json has a truncation, as model2vec saves it."""
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(7)
    return save_static(cutting, folder)


def expected(folder: Path, texts: list[str], **options: object) -> np.ndarray:
    """The vectors of sentence-transformers in float32. It does not load a folder of model2vec without modules.json."""
    if (folder / "modules.json").exists():
        return SentenceTransformer(str(folder), device="cpu").float().encode(texts, **options)
    modules = [StaticEmbedding.load(str(folder)).float(), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu").encode(texts, **options)


SHAPES: dict[str, Callable[[Tokenizer, Path], Path]] = {
    "sentence-transformers": save_static,
    "float16": lambda tokenizer, folder: save_static(tokenizer, folder, torch.float16),
    "bfloat16": lambda tokenizer, folder: save_static(tokenizer, folder, torch.bfloat16),
    "model2vec": lambda tokenizer, folder: save_model2vec(tokenizer, folder, listed=True),
    "model2vec alone": lambda tokenizer, folder: save_model2vec(tokenizer, folder, listed=False),
    "truncating": save_truncating,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_are_those_of_sentence_transformers(shape: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = SHAPES[shape](tokenizer, tmp_path / "model")
    encoder = Encoder.load(str(folder))
    assert (encoder.engine, encoder.device, encoder.precision, encoder.notices) == ("static", "cpu", "fp32", [])
    assert encoder.spec.length_limit == (7 if shape == "truncating" else None)
    found, wanted = encoder.encode(TEXTS), expected(folder, TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    assert found[0].any() == (found.shape[1] != WIDTH)  # an empty text is 0 before a Dense
    assert cosines(found[1:], wanted[1:]).min() > 0.999999


def test_a_vector_does_not_depend_on_other_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoder = Encoder.load(str(save_static(tokenizer, tmp_path / "model")))
    together = encoder.encode([*TEXTS, *everyday()])
    for row, text in enumerate(TEXTS):
        assert np.array_equal(encoder.encode([text])[0], together[row]), text


def test_prompt_dimension_and_length_are_options(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = save_static(tokenizer, tmp_path / "model")
    encoder = Encoder.load(str(folder), spec_options=SpecOptions(prompt_name="query"))
    assert cosines(encoder.encode(TEXTS), expected(folder, TEXTS, prompt_name="query")).min() > 0.999999
    encoder = Encoder.load(str(folder), spec_options=SpecOptions(truncate_dim=16, max_seq_length=9))
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 16)
    assert encoder.tokenizer([LONG]).lengths.tolist() == [9]


def test_integers_are_averaged_as_model2vec_averages_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = save_model2vec(tokenizer, tmp_path / "model", listed=False, normalize=False)
    table = (normal(tokenizer.get_vocab_size(), WIDTH) * 20).to(torch.int8)
    save_file({"embeddings": table}, folder / "model.safetensors")
    text = everyday()[0]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    np.testing.assert_allclose(Encoder.load(str(folder)).encode([text])[0], table[ids].float().mean(0), rtol=1e-5)


def test_pickled_weights_are_converted(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_model2vec(tokenizer, tmp_path / "model", listed=True)
    before = Encoder.load(str(folder)).encode(TEXTS)
    pickle_weights(folder)
    assert read_spec(folder).pickled
    assert np.array_equal(Encoder.load(str(folder)).encode(TEXTS), before)


def test_files_of_a_model_in_the_root_are_found_under_any_name_of_it() -> None:
    names = ["modules.json", "config.json", "tokenizer.json", "model.safetensors", "onnx/model.onnx"]
    assert model_files(names, json.dumps(LIST).encode(), code=False) == sorted(names[:4])


@pytest.mark.parametrize(("cores", "megabytes", "name"), [(2, 200, "local"), (2, 300, "ray"), (64, 1100, "ray")])
def test_its_speed_is_that_of_tokenizing(
    cores: int, megabytes: int, name: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_spec(save_model2vec(tokenizer, tmp_path / "model", listed=True))
    assert computing_parameters(spec) == 0
    assert plain_bytes_per_second(spec, gpu=False) == plain_bytes_per_second(spec, gpu=True) == 1e6
    monkeypatch.setattr("kosbert_ray.run.executors.choice.usable_cores", lambda: cores)
    file = InputFile("a.jsonl", megabytes * 10**6, "1", "jsonl")
    config = JobConfig.model_validate({"encoder": {"device": "cpu"}})
    assert choose(config, spec, [Fragment(file, 0, 0, file.size)], crashed=False).name == name


REFUSED = [
    ({"engine": "torch"}, "encoder.engine: .* is a static embedding model, which runs with static only, not torch"),
    ({"engine": "openvino"}, "static only, not openvino"),
    ({"device": "cuda"}, "encoder.device: .* which runs with cpu only, not cuda"),
    ({"precision": "bf16"}, "encoder.precision: .* which runs with fp32 only, not bf16"),
    ({"precision": "int8"}, "fp32 only, not int8"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_do_not_fit_are_refused(options, message, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = save_model2vec(tokenizer, tmp_path / "model", listed=True)
    with pytest.raises(UsageError, match=message):
        Encoder.load(str(folder), EncoderOptions(**options))


def test_the_engine_is_for_static_models_only() -> None:
    with pytest.raises(UsageError, match=r"encoder\.engine: static is for static embedding models, .* is a bert model"):
        Encoder.load(TINY, EncoderOptions(engine="static"))


def test_weights_and_modules_that_do_not_fit_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = save_static(tokenizer, tmp_path / "model")
    dense = next(folder.glob("1_Dense*")) / "config.json"
    settings = json.loads(dense.read_text())
    dense.write_text(json.dumps(settings | {"activation_function": "torch.nn.modules.activation.GELU"}))
    with pytest.raises(ModelError, match=r"GELU is not supported in a static embedding model; supported are Identity, "):
        Encoder.load(str(folder))
    dense.write_text(json.dumps(settings | {"bias": False}))
    with pytest.raises(ModelError, match=r"1_Dense.*model\.safetensors: its weights do not fit its config"):
        Encoder.load(str(folder))
    dense.write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot load the tokenizer"):
        Encoder.load(str(folder)).encode(["가"])
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: missing from the model folder"):
        read_spec(folder)
    for wrong, message in (
        ({"weight": normal(5, 4)}, "not the weights of a static embedding model"),
        ({"embeddings": normal(5, 4), "mapping": torch.tensor([0, 5])}, "mapping names rows beyond the 5 of embeddings"),
        ({"embeddings": normal(5, 4), "weights": normal(4)}, r"weights has shape \[4\] for 5 token ids"),
    ):
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            read_table([folder / "model.safetensors"])


RUN = """
import json, sys
import kosbert_ray
summary = kosbert_ray.embed("bundled:everyday", "out", model=sys.argv[1], executor="local")
hits = kosbert_ray.Output.open("out").search(["비가 온다."], top_k=1)
print(json.dumps([summary.totals.rows, len(hits), sorted({"torch", "transformers"} & {*sys.modules})]))
"""


def test_a_job_loads_no_torch_and_its_output_holds(
    cli: Run, told: Callable[..., str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, out = save_model2vec(tokenizer, tmp_path / "model", listed=False), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", RUN, model], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [520, 1, []]
    stored = json.loads((out / "_kosbert" / "job.json").read_text())
    assert stored["config"]["encoder"]["engine"] == "static"
    assert (stored["fingerprint"]["pooling"], stored["fingerprint"]["head"]) == (["mean"], ["Normalize"])
    arguments = ("bundled:everyday", out, "--model", model)
    before = {path.name for path in out.glob("*.parquet")}
    cli("embed", *arguments)
    assert {path.name for path in out.glob("*.parquet")} == before
    cli("verify", out, "--input", "bundled:everyday", "--sample", 20)
    assert "the model takes texts of any length" in cli("plan", "bundled:everyday", "--model", model).stdout
    assert "chunk.size: the model takes texts of any length" in told(
        "embed", "bundled:everyday", tmp_path / "chunked", "--model", model, "--set", "long_text=chunk", code=2
    )
    assert f"{model} is a static embedding model, whose tokens do not depend on the text around them" in told(
        "embed", "bundled:everyday", tmp_path / "late", "--model", model, "--set", "long_text=late", code=2
    )
    chunked = ("--model", model, "--set", "long_text=mean", "--set", "chunk.size=4", "--set", "executor=local")
    cli("embed", "bundled:everyday", tmp_path / "chunked", *chunked)
    cli("verify", tmp_path / "chunked", "--input", "bundled:everyday", "--sample", 20)
    assert "static is for static embedding models" in told(
        "embed", "bundled:everyday", tmp_path / "bert", "--model", TINY, "--set", "encoder.engine=static", code=2
    )
    assert "choose another output" in told("embed", "bundled:everyday", out, "--model", TINY, code=1)
