"""Sparse vectors of queries without a transformer are those of sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import everyday
from models import pickle_weights
from reference import require_same_sparse
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from sparse_models import save_inference_free
from zoo import tokenizer

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import files_in
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource

QUERY = "query_0_SparseStaticEmbedding"
TEXTS = [*everyday()[:20], "비 비 비가 온다", "", "𓀀", " ".join(everyday()[40:60])]
TASKS = ("query", "document", None)

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "질문 ", "document": "글 "}
    return save_inference_free(tmp_path_factory.mktemp("router"), prompts=prompts)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "router"))


def load(folder: Path) -> Encoder:
    return Encoder.load(str(folder), EncoderOptions(precision="fp32", device="cpu"))


def require_same(folder: Path, tasks: tuple[str | None, ...] = TASKS) -> Encoder:
    reference, encoder = SparseEncoder(str(folder), device="cpu"), load(folder)
    ways: dict[str | None, Callable[..., Any]] = {
        "query": reference.encode_query,
        "document": reference.encode_document,
        None: reference.encode,
    }
    for task in tasks:
        expected = ways[task](TEXTS, batch_size=8).to_dense().numpy()
        require_same_sparse(encoder.encode_sparse(TEXTS, task=task).toarray(), expected)
    return encoder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_queries_have_the_weights_of_their_tokens(model: Path) -> None:
    encoder = require_same(model)
    assert encoder.spec.kinds == ("sparse",)
    once, thrice = encoder.encode_sparse(["비가", "비가 비가 비가"], task="query").toarray()
    assert (once == thrice).all()


def test_a_query_in_one_string(model: Path) -> None:
    encoder = load(model)
    assert encoder.encode_sparse("비가 온다.", task="query", top_k=2).nnz == 2
    assert encoder.encode_sparse([], task="query").shape == (0, encoder.spec.sparse.dimension)
    plain = encoder.encode_sparse(["비가"], task="query", prompt="").indices
    assert set(plain) < set(encoder.encode_sparse(["비가"], task="query", prompt_name="query").indices)


@pytest.mark.parametrize("default", ["query", None])
def test_texts_without_a_task_take_the_default_route(default: str | None, tmp_path: Path) -> None:
    folder = save_inference_free(tmp_path, default)
    assert require_same(folder).spec.queries.default  # without a default, the first route is it


def test_a_models_own_number_of_values(tmp_path: Path) -> None:
    require_same(save_inference_free(tmp_path, max_active_dims=3))


def test_long_queries_are_truncated(model: Path) -> None:
    edit(model / QUERY / "tokenizer_config.json", model_max_length=12)
    require_same(model, ("query",))


def test_weights_in_a_json_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``SparseStaticEmbedding.from_json`` reads it; sentence-transformers looks for it where the process runs."""
    words, weight = tokenizer("wordpiece"), load_file(model / QUERY / "model.safetensors")["weight"].tolist()
    (model / "idf.json").write_text(json.dumps({word: weight[id] for word, id in words.get_vocab().items()}))
    (model / QUERY / "model.safetensors").unlink()
    edit(model / QUERY / "config.json", path="idf.json")
    monkeypatch.chdir(model)
    spec = require_same(model).spec
    assert model / "idf.json" in spec.weight_files
    copy = prepare(ModelSource(str(model))).kept()
    assert copy.spec().queries.table == copy.folder / "idf.json"
    shutil.copy(model / "idf.json", model.parent)
    edit(model / QUERY / "config.json", path="../../idf.json")
    with pytest.raises(ModelError, match=r"names \.\./\.\./idf.json for the weights of tokens, which is not in the model"):
        load(model)


def test_the_document_transformer_may_lie_in_the_root(model: Path) -> None:
    """As in repositories that had the transformer before they had a Router."""
    router = json.loads((model / "router_config.json").read_text())
    (document,) = (name for name in router["types"] if name.startswith("document_0"))
    for path in (model / document).iterdir():
        path.rename(model / path.name)
    (model / document).rmdir()
    router["types"][""] = router["types"].pop(document)
    router["structure"]["document"][0] = ""
    (model / "router_config.json").write_text(json.dumps(router))
    names = files_in(model, code=False)
    assert {"model.safetensors", f"{QUERY}/model.safetensors", f"{QUERY}/tokenizer.json"} <= {*names}
    require_same(model)


def test_a_prepared_copy_has_both_sides(model: Path) -> None:
    expected = load(model).encode_sparse(TEXTS, task="query")
    pickle_weights(model / QUERY)
    prepared = prepare(ModelSource(str(model)))
    spec = prepared.kept().spec()
    assert spec.queries.folder == prepared.kept().folder / QUERY
    encoder = Encoder(spec, EncoderOptions(precision="fp32", device="cpu"))
    assert (encoder.encode_sparse(TEXTS, task="query", prompt_name="query") != expected).nnz == 0


def swap(router: dict[str, Any]) -> None:
    structure = router["structure"]
    structure["query"], structure["document"] = structure["document"], structure["query"]


def rename(router: dict[str, Any]) -> None:
    router["structure"]["passage"] = router["structure"].pop("document")


def map_routes(router: dict[str, Any]) -> None:
    router["parameters"]["route_mappings"] = {"('query', 'text')": "document"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            swap,
            "texts take other modules for query than for document .query: Transformer, SpladePooling; document: Sparse",
        ),
        (rename, "texts take other modules for query than for passage"),
        (map_routes, "route_mappings are not supported"),
    ],
)
def test_other_routes_are_refused(change: Callable[[dict[str, Any]], None], message: str, model: Path) -> None:
    router = json.loads((model / "router_config.json").read_text())
    change(router)
    (model / "router_config.json").write_text(json.dumps(router))
    with pytest.raises(ModelError, match=message):
        load(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight - 0.5, "of its weights are below 0, which is not supported"),
        (lambda weight: weight[:-5], "has 1,995 weights for 2,000 tokens, and the vectors of documents have 2,000 numbers"),
        (lambda weight: weight[None], "not the weights of tokens"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, model: Path
) -> None:
    weights = load_file(model / QUERY / "model.safetensors")
    save_file({"weight": change(weights["weight"]).contiguous()}, model / QUERY / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load(model).encode_sparse(["가"], task="query")
