"""Weights in ``pytorch_model.bin``: read without running them, converted once, and unused if there are safetensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import everyday
from hub import Hub
from models import pickle_weights, save_model
from reference import cosines, reference
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import model_files, sha256
from kosbert_ray.model.prepare import as_safetensors
from kosbert_ray.model.spec import read_spec

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
NAME = "jhgan/ko-sbert-sts"
LEFT = ("tf_model.h5", "onnx/model.onnx", "openvino/openvino_model.bin", "training_args.bin", "similarity_evaluation.csv")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kosbert-ray" / "models"


def as_on_the_hub(folder: Path, target: Path, tokenizer_json: bool) -> Path:
    """A BERT laid out like jhgan/ko-sbert-sts, with old names of classes and settings, and unneeded files."""
    shutil.copytree(folder, target)
    pickle_weights(target)
    classes = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(classes)
    ]
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.0.0"}},
        "tokenizer_config.json": {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "model_max_length": 128},
        "special_tokens_map.json": {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content))
    vocabulary = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    (target / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", "utf-8")
    if not tokenizer_json:
        (target / "tokenizer.json").unlink()
    for name in (*LEFT, "onnx/config.json"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(b"not needed")
    return target


@pytest.mark.parametrize("tokenizer_json", [pytest.param(True, marks=pytest.mark.slow), False])
def test_ko_sbert_sts_is_fetched_and_gives_the_vectors_of_sentence_transformers(
    tokenizer_json: bool, tmp_path: Path, cache: Path
) -> None:
    model = save_model("bert", everyday(), tmp_path / "made")
    folder = as_on_the_hub(model, tmp_path / "hub" / NAME, tokenizer_json)
    texts = everyday()[:100]
    hub = Hub(tmp_path / "hub")
    code = (
        "import sys, numpy as np; from kosbert_ray.encoder import Encoder; from kosbert_ray.encoder.options import *;"
        "texts = sys.stdin.read().split(chr(10));"
        f"encoder = Encoder.load({NAME!r}, EncoderOptions(precision='fp32', device='cpu'));"
        f"np.save({str(tmp_path / 'v.npy')!r}, encoder.encode(texts))"
    )
    try:
        for _ in range(2):
            env = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "hf")}
            run = [sys.executable, "-c", code]
            subprocess.run(run, input="\n".join(texts), env=env, text=True, check=True, capture_output=True)
    finally:
        hub.close()
    expected = reference(folder, texts)
    assert cosines(np.load(tmp_path / "v.npy"), expected).min() >= 0.999999
    fetched = [name.removeprefix(f"{NAME}/") for name in hub.read]
    assert len(fetched) == len(set(fetched)) and "pytorch_model.bin" in fetched
    assert not {*LEFT, "onnx/config.json"} & set(fetched)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_embed_takes_ko_sbert_sts_without_an_option(cli, tmp_path: Path) -> None:
    folder = as_on_the_hub(save_model("bert", everyday(), tmp_path / "made"), tmp_path / "hub" / NAME, False)
    hub = Hub(tmp_path / "hub")
    env = hub.env | {"HF_HOME": str(tmp_path / "hf")}
    try:
        arguments = ["--keep", "text", "--set", "encoder.precision=fp32"]
        done = cli("embed", "bundled:everyday", tmp_path / "out", "--model", NAME, *arguments, env=env)
        assert "done: 520 rows" in done.stdout
        retired = ["--set", "model.allow_pickle=true"]
        again = cli("embed", "bundled:everyday", tmp_path / "out", "--model", NAME, *arguments, *retired, env=env)
        assert "model.allow_pickle is no longer needed" in again.stderr
    finally:
        hub.close()
    table = pq.read_table(tmp_path / "out")
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert cosines(vectors, reference(folder, table["text"].to_pylist())).min() >= 0.999999


def test_names_settle_which_files_are_fetched() -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]).encode()
    names = ["config.json", "vocab.txt", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"]
    others = [*LEFT, "onnx/config.json", "checkpoint-9/model.safetensors", "adapter_model.safetensors", "a.py"]
    for weights, also in (
        (["model.safetensors"], ["pytorch_model.bin", "model-00001-of-00001.safetensors"]),
        (["pytorch_model.bin"], ["flax_model.msgpack", "model-00001-of-00002.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"], []),
        (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"], []),
    ):
        assert set(model_files([*names, *others, *weights, *also], modules, False)) == {*names, *weights}
    assert "a.py" in model_files([*names, *others], modules, True)
    assert set(model_files(["config.json", "model.safetensors", "1_Pooling/config.json"], None, False)) == {
        "config.json",
        "model.safetensors",
    }


def test_a_dense_head_and_shards_are_converted_too_and_the_hash_stays_that_of_the_pickles(
    tmp_path: Path, cache: Path
) -> None:
    model = save_model("bert", everyday(), tmp_path, dense=24)
    expected = Encoder.load(str(model), FP32).encode(everyday()[:9])
    pickle_weights(model / "2_Dense")
    state = pickle_weights(model)
    (model / "pytorch_model.bin").unlink()
    names = sorted(state)
    half = len(names) // 2
    shards = {f"pytorch_model-0000{n}-of-00002.bin": part for n, part in ((1, names[:half]), (2, names[half:]))}
    for shard, part in shards.items():
        torch.save({name: state[name] for name in part}, model / shard)
    where = {name: shard for shard, part in shards.items() for name in part}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    spec = read_spec(model)
    assert [path.name for path in spec.weight_files[:3]] == [*shards, "pytorch_model.bin"]
    assert spec.weight_files == spec.legacy_weight_files
    before = sha256(spec.folder, spec.weight_files)
    encoder = Encoder.load(str(model), FP32)
    np.testing.assert_array_equal(encoder.encode(everyday()[:9]), expected)
    assert not encoder.spec.pickled and encoder.spec.folder.parent == cache
    assert before == sha256(spec.folder, read_spec(model).weight_files)
    made = encoder.spec.weight_files[0].stat().st_mtime_ns
    assert Encoder.load(str(model), FP32).spec.weight_files[0].stat().st_mtime_ns == made
    assert not list(cache.glob("partial-*"))


def test_tied_weights_come_through_and_those_of_a_language_models_head_are_left_out(tiny_model: Path, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    state = pickle_weights(folder)
    words = state["embeddings.word_embeddings.weight"]
    base = torch.arange(20.0)
    tied = {"cls.predictions.decoder.weight": words, "a": base, "b": base, "view": base[5:15], "across": base.view(4, 5).T}
    torch.save({f"bert.{name}" if name in state else name: value for name, value in (state | tied).items()}, folder / "x")
    (folder / "x").rename(folder / "pytorch_model.bin")
    spec = as_safetensors(read_spec(folder))
    found = load_file(spec.weight_files[0])
    assert "cls.predictions.decoder.weight" not in found
    assert torch.equal(found["bert.embeddings.word_embeddings.weight"], words)
    for name in ("a", "b", "view", "across"):
        assert torch.equal(found[name], tied[name])
    vectors = Encoder.load(str(folder), FP32).encode(everyday()[:9])
    np.testing.assert_array_equal(vectors, Encoder.load(str(tiny_model), FP32).encode(everyday()[:9]))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def old_format(state: object) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink, _use_new_zipfile_serialization=False)
    return sink.getvalue()


def test_a_pickle_that_is_more_than_tensors_is_refused_and_not_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = folder / "pytorch_model.bin"
    state = pickle_weights(folder)
    burst = tmp_path / "burst"
    torch.save(state | {"more": Bomb(burst)}, folder / "zip")
    zipped = (folder / "zip").read_bytes()
    (folder / "zip").unlink()
    for content, message in (
        (zipped, r"_model\.bin: holds more than tensors \(it calls getattr\) and was not loaded; save the model as safe"),
        (old_format(state | {"more": Bomb(burst)}), "holds more than tensors"),
        (pickle.dumps(Bomb(burst)), "not a file of weights; save the model as safetensors"),
        (zipped[: len(zipped) // 2], "broken or cut-short weights"),
        (b"", "broken or cut-short weights"),
        (old_format([1, 2]), "not a mapping of names to dense tensors"),
        (old_format({"a": {"b": torch.zeros(1)}}), "not a mapping of names to dense tensors"),
    ):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=message) as raised:
            Encoder.load(str(folder), FP32)
        assert "\n" not in str(raised.value)
        assert not burst.exists()


def test_the_format_before_torch_1_6_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "pytorch_model.bin").write_bytes(old_format(pickle_weights(folder)))
    vectors = Encoder.load(str(folder), FP32).encode(everyday()[:9])
    np.testing.assert_array_equal(vectors, Encoder.load(str(tiny_model), FP32).encode(everyday()[:9]))
    assert SentenceTransformer(str(folder), device="cpu").encode(["가"]).shape == (1, 128)
