"""BGE-M3's three kinds of vectors are those of FlagEmbedding, whose dense ones keep their fingerprint.

The reference below is written from the behaviour of ``M3Embedder`` in FlagEmbedding 1.4.2, with which it was compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import everyday
from hub import Hub
from m3_models import HEADS, WIDTH, add_heads
from models import pickle_weights
from reference import cosines, reference, require_same_sparse
from safetensors.torch import load_file, save_file
from zoo import LENGTH, ZOO, save

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import model_files, sha256
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec

FP32 = EncoderOptions(precision="fp32", device="cpu")
TEXTS = [*everyday()[:20], "비 비 비가 온다", "가", "𓀀 없는 글자", " ".join(everyday()[40:60])]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(ZOO["xlm-roberta, cls"], tmp_path_factory.mktemp("m3"))


@pytest.fixture
def model(dense: Path, tmp_path: Path) -> Path:
    return add_heads(Path(shutil.copytree(dense, tmp_path / "model")), *HEADS)


@torch.inference_mode()
def flag_embedding(folder: Path, texts: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Lexical weights as a matrix, and token vectors."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    body = transformers.AutoModel.from_pretrained(folder).eval()
    layers = {}
    for name, features in HEADS.items():
        layers[name] = torch.nn.Linear(WIDTH, features)
        layers[name].load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    special = {words.cls_token_id, words.eos_token_id, words.pad_token_id, words.unk_token_id}
    sparse, vectors = np.zeros((len(texts), len(words)), np.float32), []
    for row, text in enumerate(texts):
        inputs = words(text, truncation=True, max_length=LENGTH, return_tensors="pt", return_token_type_ids=False)
        hidden = body(**inputs).last_hidden_state[0]
        weights = torch.relu(layers["sparse_linear"](hidden))[:, 0]
        for id, weight in zip(inputs["input_ids"][0].tolist(), weights.tolist(), strict=True):
            if id not in special:
                sparse[row, id] = max(sparse[row, id], weight)
        vectors.append(torch.nn.functional.normalize(layers["colbert_linear"](hidden[1:]), dim=-1).numpy())
    return sparse, vectors


def test_three_kinds_in_one_pass(model: Path) -> None:
    encoder = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu", engine="torch"))
    assert encoder.spec.kinds == ("dense", "sparse", "multi_vector")
    sparse, vectors = flag_embedding(model, TEXTS)
    found = encoder.encode_tokens(encoder.tokenizer(TEXTS), kinds=encoder.spec.kinds)
    require_same_sparse(found.ragged["sparse"].take(found.rows).to_csr(sparse.shape[1]).toarray(), sparse)
    require_same_sparse(encoder.encode_sparse(TEXTS).toarray(), sparse)
    tokens = found.ragged["multi_vector"].take(found.rows).to_list()
    assert [len(one) for one in tokens] == [len(one) for one in vectors]
    assert cosines(np.concatenate(tokens), np.concatenate(vectors)).min() >= 0.999999
    assert cosines(found.vectors, reference(model, TEXTS)).min() >= 0.999999
    for task in ("query", "document"):  # alike
        require_same_sparse(encoder.encode_sparse(TEXTS, task=task).toarray(), sparse)


def test_another_engine_computes_the_dense_vectors(model: Path) -> None:
    encoder = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu", engine="openvino"))
    assert cosines(encoder.encode(TEXTS), reference(model, TEXTS)).min() >= 0.999999


@pytest.mark.parametrize(
    ("names", "kinds", "trained"),
    [
        ((), ("dense", "multi_vector"), False),
        (("sparse_linear",), ("dense", "sparse", "multi_vector"), False),
        (("colbert_linear",), ("dense", "multi_vector"), True),
    ],
)
def test_heads_may_be_missing(
    names: tuple[str, ...], kinds: tuple[str, ...], trained: bool, dense: Path, tmp_path: Path
) -> None:
    folder = add_heads(Path(shutil.copytree(dense, tmp_path / "model")), *names)
    spec = read_spec(folder)
    assert (spec.kinds, spec.multi_vector.trained) == (kinds, trained)
    assert [path.name for path in spec.head_files] == [f"{name}.pt" for name in names]
    (vectors,) = Encoder(spec, FP32).encode_multi_vector(["비가 온다."])
    assert vectors.shape[1] == (48 if trained else WIDTH)


@pytest.mark.parametrize("pickled", [False, True])
def test_the_dense_fingerprint_is_the_same_with_and_without_heads(
    pickled: bool, model: Path, dense: Path, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(dense, tmp_path / "plain"))
    for folder in (model, plain) if pickled else ():
        pickle_weights(folder)
    one, other = prepare(ModelSource(str(model))), prepare(ModelSource(str(plain)))
    assert (one.digests.weights, one.digests.tokenizer) == (other.digests.weights, other.digests.tokenizer)
    assert one.digests.all != other.digests.all
    assert one.legacy_weights() == other.legacy_weights()
    assert (one.digests.heads, other.digests.heads) == (sha256(model, read_spec(model).head_files), "")


def test_a_prepared_copy_has_the_heads_as_safetensors(model: Path) -> None:
    expected = Encoder.load(str(model), FP32).encode_sparse(TEXTS)
    copy = prepare(ModelSource(str(model))).kept()
    assert sorted(path.name for path in copy.folder.glob("*_linear*")) == [f"{name}.safetensors" for name in sorted(HEADS)]
    spec = copy.spec()
    assert not spec.pickled
    assert {path.parent for path in spec.head_files} == {copy.folder}
    assert (Encoder(spec, FP32).encode_sparse(TEXTS) != expected).nnz == 0
    # The copy is a model like any other.
    again = prepare(ModelSource(str(copy.folder)))
    assert [path.name for path in again.spec().head_files] == ["sparse_linear.safetensors", "colbert_linear.safetensors"]


def test_only_the_heads_are_taken_of_other_pickles() -> None:
    names = [
        "model.safetensors",
        "config.json",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "optimizer.pt",
        "1/sparse_linear.pt",
    ]
    assert model_files(names, None, False) == ["colbert_linear.pt", "config.json", "model.safetensors", "sparse_linear.pt"]
    both = model_files([*names, "sparse_linear.safetensors"], None, False)
    assert "sparse_linear.pt" not in both and "sparse_linear.safetensors" in both


KINDS = """
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec
print(*read_spec(locate_folder(ModelSource("BAAI/bge-m3"))).kinds)
"""


def test_the_heads_are_fetched_from_the_hub(model: Path, tmp_path: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"not needed")
    shutil.copytree(model, tmp_path / "hub" / "BAAI" / "bge-m3")
    hub = Hub(tmp_path / "hub")
    env = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "hf")}
    try:
        done = subprocess.run([sys.executable, "-c", KINDS], env=env, capture_output=True, text=True, check=False)
    finally:
        hub.close()
    assert done.stdout.split() == ["dense", "sparse", "multi_vector"], done.stderr
    assert "BAAI/bge-m3/sparse_linear.pt" in hub.read and "BAAI/bge-m3/optimizer.pt" not in hub.read


class Program:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: torch.save({"weight": Program()}, path), "holds more than tensors"),
        (lambda path: path.write_bytes(b"x"), "sparse_linear.pt: "),
        (
            lambda path: torch.save(torch.nn.Linear(WIDTH, 2).state_dict(), path),
            "gives 2 numbers for a token instead of its",
        ),
        (lambda path: torch.save(torch.nn.Linear(9, 1).state_dict(), path), r"hidden states of 64 .* but weight \[1, 9\]"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    ],
)
def test_heads_that_are_none_are_refused(spoil: Callable[[Path], None], message: str, model: Path) -> None:
    spoil(model / "sparse_linear.pt")
    with pytest.raises(ModelError, match=message):
        Encoder.load(str(model), FP32)


def test_a_text_that_is_not_finite_has_no_vector(model: Path) -> None:
    encoder = Encoder.load(str(model), FP32)
    tokens = encoder.tokenizer(["비가 온다.", "눈"])
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][int(tokens.ids[1])] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    spoilt = Encoder(read_spec(model), FP32, kinds=("sparse",))
    found = spoilt.encode_tokens(tokens)
    assert found.failed == {0: "its vector holds NaN or Inf"}
    assert found.ragged["sparse"].counts[0] == 0 < found.ragged["sparse"].counts[1]
