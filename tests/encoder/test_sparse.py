"""Sparse vectors are those of sentence-transformers' SparseEncoder, whatever batches they are computed in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import everyday
from hypothesis import given
from hypothesis import strategies as st
from reference import require_same_sparse
from sentence_transformers import SentenceTransformer, SparseEncoder
from sparse_models import CODES, save_autoencoder, save_splade
from zoo import ZOO, tokenizer

from kosbert_ray.encoder.collected import DenseRows, KindRows
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.engines import mlm_head
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.vectors.kinds import DENSE, SPARSE
from kosbert_ray.vectors.sparse import SparseVectors

TEXTS = [*everyday()[:40], " ".join(everyday()[40:60]), "가"]
# On the hub: naver/splade-v3, opensearch-project/opensearch-neural-sparse-encoding-v2-distill, yjoonjang/splade-ko-v1.
HEADS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert")
POOLINGS = (("max", "relu"), ("sum", "relu"), ("max", "log1p_relu"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_splade(tmp_path_factory.mktemp("splade"), "bert")


def require_same(folder: Path, texts: list[str], **options: Any) -> Encoder:
    """Our vectors are within 1e-5 of sentence-transformers', and have the same numbers above 1e-4."""
    encoder = Encoder.load(str(folder), EncoderOptions(precision="fp32", device="cpu", **options))
    expected = SparseEncoder(str(folder), device="cpu").encode(texts, batch_size=8).to_dense().numpy()
    found = encoder.encode_sparse(texts)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    require_same_sparse(found.toarray(), expected)
    return encoder


@pytest.mark.parametrize("kind", HEADS)
def test_heads(kind: str, tmp_path: Path) -> None:
    encoder = require_same(save_splade(tmp_path, kind), TEXTS)
    assert (encoder.engine, encoder.attention) == ("torch", "packed")
    assert encoder.spec.sparse.dimension == len(tokenizer(ZOO[kind].tokenizer))


@pytest.mark.parametrize("pooling", POOLINGS[1:], ids="-".join)
def test_poolings(pooling: tuple[str, str], tmp_path: Path) -> None:
    require_same(save_splade(tmp_path, "bert", pooling), TEXTS)


def test_a_models_own_number_of_values(tmp_path: Path) -> None:
    encoder = require_same(save_splade(tmp_path, "bert", max_active_dims=9), TEXTS)
    assert str(encoder.spec.sparse) == "splade max relu top 9"
    assert (np.diff(encoder.encode_sparse(TEXTS).indptr) == 9).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_autoencoders(kind: str, normalize: bool, tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path, kind, normalize=normalize)
    encoder = require_same(folder, TEXTS)
    assert encoder.spec.kinds == ("sparse", "dense")
    assert encoder.spec.sparse.dimension == CODES
    counts = np.diff(encoder.encode_sparse(TEXTS).indptr)
    assert counts.min() > 0 and counts.max() <= 8
    # The dense vectors are those before the autoencoder.
    plain = SentenceTransformer(modules=[*SparseEncoder(str(folder), device="cpu").children()][:-1], device="cpu")
    assert np.abs(encoder.encode(TEXTS) - plain.encode(TEXTS)).max() <= 1e-5


def test_one_pass_gives_dense_and_sparse_vectors(tmp_path: Path) -> None:
    encoder = Encoder.load(str(save_autoencoder(tmp_path, "bert")), EncoderOptions(precision="fp32", device="cpu"))
    both = encoder.encode_tokens(encoder.tokenizer(TEXTS), kinds=(DENSE, SPARSE))
    assert np.array_equal(both.vectors, encoder.encode(TEXTS))
    sparse = both.ragged[SPARSE].take(both.rows).to_csr(CODES)
    assert (sparse != encoder.encode_sparse(TEXTS)).nnz == 0


def test_blocks_of_activations_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(str(save_autoencoder(tmp_path, "bert")), EncoderOptions(precision="fp32", device="cpu"))
    whole = encoder.encode_sparse(TEXTS)
    monkeypatch.setitem(mlm_head.BLOCK_BYTES, "cpu", 4 * CODES * 3)
    assert np.abs((encoder.encode_sparse(TEXTS) - whole).toarray()).max() <= 1e-5


def test_autoencoders_in_other_places_are_refused(tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules[:2], modules[-1], *modules[2:-1]]))
    with pytest.raises(ModelError, match="SparseAutoEncoder is supported last only"):
        Encoder.load(str(folder))
    (folder / "modules.json").write_text(json.dumps([*modules[:2], modules[-1]]))
    with pytest.raises(ModelError, match="4_SparseAutoEncoder: takes 48 features, but gets 64"):
        Encoder.load(str(folder))
    static = modules[0] | {"type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([static, modules[-1]]))
    with pytest.raises(ModelError, match="a SparseAutoEncoder over a StaticEmbedding is not supported"):
        Encoder.load(str(folder))


@pytest.mark.parametrize("tokens", [1, 3, 50, 10**6])
def test_blocks_of_logits_change_nothing(model: Path, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may be a part of a text, or hold many texts."""
    whole = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu")).encode_sparse(TEXTS)
    monkeypatch.setitem(mlm_head.BLOCK_BYTES, "cpu", 4 * whole.shape[1] * tokens)
    again = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu", token_budget=200))
    assert np.abs((again.encode_sparse(TEXTS) - whole).toarray()).max() <= 1e-5


def test_logits_are_never_held_for_a_batch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    view: Callable[..., Any] = mlm_head._activated
    vocabulary = len(tokenizer("wordpiece"))

    def watched(logits: torch.Tensor, activation: str) -> torch.Tensor:
        nonlocal most
        most = max(most, logits.nbytes)
        return view(logits, activation)

    monkeypatch.setitem(mlm_head.BLOCK_BYTES, "cpu", 4 * vocabulary * 64)
    monkeypatch.setattr(mlm_head, "_activated", watched)
    Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu")).encode_sparse(TEXTS)
    assert 0 < most <= 4 * vocabulary * 64


def test_the_largest_values_are_kept(model: Path) -> None:
    encoder = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu"))
    reference = SparseEncoder(str(model), device="cpu", max_active_dims=7)
    expected = reference.encode(TEXTS, batch_size=8).to_dense().numpy()
    found = encoder.encode_sparse(TEXTS, top_k=7).toarray()
    assert (np.count_nonzero(found, axis=1) == 7).all()
    assert np.abs(found - expected).max() <= 1e-5


def test_one_text_and_repeated_texts(model: Path) -> None:
    encoder = Encoder.load(str(model), EncoderOptions(device="cpu"))
    assert encoder.encode_sparse("비가 온다.").shape[0] == 1
    twice = encoder.encode_sparse([TEXTS[0], TEXTS[1], TEXTS[0]]).toarray()
    assert (twice[0] == twice[2]).all()
    assert encoder.encode_sparse([]).shape == (0, encoder.spec.sparse.dimension)


def test_dense_and_sparse_are_not_mistaken_for_each_other(model: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="has sparse vectors; use encode_sparse"):
        Encoder.load(str(model), EncoderOptions(device="cpu")).encode(["가"])
    with pytest.raises(UsageError, match="has dense vectors; use encode"):
        Encoder.load(str(tiny_model), EncoderOptions(device="cpu")).encode_sparse(["가"])
    with pytest.raises(UsageError, match="torch alone computes sparse vectors"):
        Encoder.load(str(model), EncoderOptions(device="cpu", engine="openvino"))


def test_poolings_that_are_not_known_are_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "1_SpladePooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling_strategy": "mean"}))
    with pytest.raises(ModelError, match="pooling_strategy 'mean' is not supported; supported are max, sum"):
        Encoder.load(str(tmp_path / "model"))


# -- the arithmetic ----------------------------------------------------------------------------------------------------

MATRICES = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), min_size=6, max_size=6), max_size=8)


@given(MATRICES, st.integers(1, 6), st.sampled_from([0.0, 0.6]))
def test_sparse_vectors_are_those_of_the_matrix(rows: list[list[float]], most: int, least: float) -> None:
    matrix = np.array(rows, np.float32).reshape(-1, 6)
    positive = np.where(matrix > 0, matrix, 0)
    vectors = SparseVectors.of_rows(matrix)
    assert (vectors.to_csr(6).toarray() == positive).all()
    halves = SparseVectors.of_rows(matrix[:3]).joined([SparseVectors.of_rows(matrix[3:])])
    assert (halves.to_csr(6).toarray() == positive).all()
    order = np.arange(len(matrix))[::-1]
    assert (vectors.take(order).to_csr(6).toarray() == positive[order]).all()
    strongest = vectors.strongest(most, least).to_csr(6).toarray()
    for row, kept in zip(positive, strongest, strict=True):
        chosen = [place for place in np.argsort(-row, kind="stable")[:most] if row[place] >= max(least, 1e-9)]
        assert np.flatnonzero(kept).tolist() == sorted(chosen)


def test_vectors_that_are_not_finite_are_left_out() -> None:
    """A text that is not finite in one kind of vectors has none of any kind."""
    rows = KindRows(3, DenseRows(3, 1), {SPARSE: SparseVectors.empty()})
    sparse = SparseVectors.of_rows(np.array([[1, 0], [np.nan, 1]], np.float32))
    found = {SPARSE: sparse, DENSE: np.array([[1], [2]], np.float32)}
    good = rows.finite(np.array([2, 0]), found)
    assert good.tolist() == [True, False]
    rows.put(np.array([2, 0]), found, good)
    (vectors,) = rows.ragged().values()
    assert vectors.to_csr(2).toarray().tolist() == [[0, 0], [0, 0], [1, 0]]
    assert rows.dense.vectors.tolist() == [[0], [0], [1]]
