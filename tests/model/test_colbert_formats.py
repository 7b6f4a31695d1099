"""ColBERTs of PyLate and of Stanford's library give the token vectors that sentence-transformers gives for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import everyday
from models import pickle_weights
from multi_vector_models import DIMENSION, save_pylate, save_stanford
from reference import cosines
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sparse_models import masked_transformer

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model import colbert_formats
from kosbert_ray.model.files import files_in, sha256
from kosbert_ray.model.prepare import PreparedModel, prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec

TEXTS = [*everyday()[:12], "비, 눈. 바람!", " ".join(everyday()[40:60]), "가"]
FP32 = EncoderOptions(precision="fp32", device="cpu")
MARKERS = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
METADATA = {"query_maxlen": 16, "doc_maxlen": 40, "mask_punctuation": True, "attend_to_mask_tokens": False}

pytestmark = pytest.mark.usefixtures("own_cache")


def require_same(folder: Path) -> Encoder:
    reference, encoder = MultiVectorEncoder(str(folder), device="cpu"), Encoder.load(str(folder), FP32)
    for task in ("document", "query"):
        found = encoder.encode_multi_vector(TEXTS, task=task)
        encode: Any = getattr(reference, f"encode_{task}")
        expected = encode(TEXTS, batch_size=8, convert_to_numpy=True)
        assert [len(one) for one in found] == [len(one) for one in expected]
        assert cosines(np.concatenate(found), np.concatenate(expected)).min() >= 0.999999
    return encoder


def of(folder: Path) -> PreparedModel:
    return prepare(ModelSource(str(folder)))


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        (3, {}),
        (2, {}),
        (
            3,
            {"skiplist_words": None, "query_length": 30, "attend_to_expansion_tokens": True, "prompts": {"query": "물음 "}},
        ),
        (3, {"do_query_expansion": False}),
    ],
)
def test_pylate(version: int, settings: dict[str, Any], tmp_path: Path) -> None:
    encoder = require_same(save_pylate(tmp_path, version=version, **settings))
    assert encoder.spec.kinds == ("multi_vector",)
    assert encoder.spec.multi_vector.dimension == DIMENSION
    assert encoder.spec.multi_vector.trained


def test_a_prefix_that_is_a_token_stays_one(tmp_path: Path) -> None:
    words = ("[Q] ", "[D] ")
    folder = save_pylate(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    # The vocabulary's last words make room for them, since the model has no more embeddings.
    for word, token in zip(words, sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)[-2:], strict=True):
        content["added_tokens"].append({"id": content["model"]["vocab"].pop(token), "content": word, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    require_same(folder)


@pytest.mark.parametrize("metadata", [METADATA, METADATA | {"mask_punctuation": False} | MARKERS, {}])
def test_stanford(metadata: dict[str, Any], tmp_path: Path) -> None:
    folder = save_stanford(tmp_path, **metadata)
    encoder = require_same(folder)
    assert encoder.spec.multi_vector.expansion.length == (16 if metadata else 32)
    assert ("artifact.metadata" in files_in(folder, code=False)) == bool(metadata)


def test_a_marker_in_the_vocabulary_is_one_token(tmp_path: Path) -> None:
    folder = save_stanford(tmp_path, **METADATA, **MARKERS)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for marker, token in zip(MARKERS.values(), sorted(vocabulary, key=vocabulary.get)[-2:], strict=True):
        vocabulary[marker] = vocabulary.pop(token)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    encoder = require_same(folder)
    assert len(encoder.encode_multi_vector(["비"], task="document")[0]) == 1 + len(
        encoder.encode_multi_vector(["비"], task="document", prompt="")[0]
    )


@pytest.mark.parametrize("save", [save_pylate, save_stanford])
def test_pickles_are_converted_first(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    expected = Encoder.load(str(folder), FP32).encode_multi_vector(TEXTS)
    for path in [*folder.rglob("model.safetensors")]:
        pickle_weights(path.parent)
    found = Encoder.load(str(folder), FP32).encode_multi_vector(TEXTS)
    assert np.array_equal(np.concatenate(found), np.concatenate(expected))


def test_a_job_takes_the_same_copy(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pylate(tmp_path)
    model = of(folder)
    assert model.travels and model.combined
    assert [path.name for path in own_cache.iterdir()] == [model.folder.name]
    assert model.kept() == model
    spec = model.spec()
    assert Encoder(spec, FP32).kinds == ("multi_vector",)
    # The fingerprint is that of the files that the user has, whatever libraries converted them.
    names = [path.relative_to(spec.folder) for path in spec.tokenizer_files]
    assert sha256(folder, [folder / name for name in names]) == model.digests.tokenizer
    with monkeypatch.context() as patched:
        patched.setattr(colbert_formats, "VERSION", "another")
        again = of(folder)
    assert again.folder != model.folder
    assert again.digests.weights == model.digests.weights
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings | {"query_length": 20}))
    assert of(folder).digests.weights != model.digests.weights


def drop_dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def run_custom_code(folder: Path) -> None:
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace("sentence_transformers.models.Transformer", "os.Transformer"))


LAYER = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("save", "spoil", "message"),
    [
        (save_pylate, drop_dense, "without a projection .Dense is not among its modules"),
        (save_pylate, lambda folder: (folder / "1_Dense" / "model.safetensors").unlink(), "1_Dense: no weights in it"),
        (save_pylate, lambda folder: drop_tensor(folder, LAYER), "1 weights are missing"),
        (save_pylate, run_custom_code, "module os.Transformer is custom code"),
        (save_stanford, lambda folder: drop_tensor(folder, "linear.weight"), "without its projection .linear.weight"),
        (save_stanford, lambda folder: drop_tensor(folder, f"bert.{LAYER}"), "1 weights are missing"),
    ],
)
def test_checkpoints_that_lack_weights_are_refused(
    save: Callable[[Path], Path], spoil: Callable[[Path], None], message: str, tmp_path: Path, own_cache: Path
) -> None:
    folder = save(tmp_path)
    spoil(folder)
    for load in (of, lambda folder: Encoder.load(str(folder), FP32)):
        with pytest.raises(ModelError, match=message):
            load(folder)
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_without_sentence_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pylate(tmp_path)
    monkeypatch.setattr(colbert_formats, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"in the format of PyLate; to convert it, pip install .* 'kosbert-ray\[train\]'"):
        Encoder.load(str(folder))


# -- plain folders that are no dense models ------------------------------------------------------------------------------


def test_a_projection_that_is_not_used_is_told(tmp_path: Path) -> None:
    folder = save_stanford(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    notices = Encoder.load(str(folder), FP32).notices
    assert any('set "architectures": ["HF_ColBERT"]' in notice for notice in notices)


def test_a_plain_masked_language_model_may_be_a_splade(tmp_path: Path) -> None:
    masked_transformer(tmp_path, "bert")
    (notice,) = read_spec(tmp_path / "plain").notices
    assert "using mean pooling" in notice
    assert "if it is a SPLADE model, these are not its vectors" in notice


def test_a_plain_folder_of_token_vectors_is_not_read_as_a_dense_model(tmp_path: Path) -> None:
    folder = save_stanford(tmp_path)
    with pytest.raises(ModelError, match="a HF_ColBERT gives token vectors"):
        read_spec(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ColModernVBertForRetrieval"]}))
    with pytest.raises(ModelError, match="a ColModernVBertForRetrieval gives token vectors"):
        Encoder.load(str(folder))
