"""Encodes texts with sentence-transformers, the reference for each kind of vectors. Needs sentence-transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import COLBERT_LINEAR, SPARSE_LINEAR
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

# Heads of BGE-M3, which sentence-transformers ignores.
FOREIGN_HEADS = {SPARSE: SPARSE_LINEAR, MULTI_VECTOR: COLBERT_LINEAR}
DOCUMENT = "document"  # sentence-transformers' name of the task whose lengths, routes and skiplists a job uses


def not_comparable(spec: ModelSpec, kind: Kind) -> str:
    """Returns why sentence-transformers cannot make a kind of the model's vectors; empty if it can."""
    name = FOREIGN_HEADS.get(kind)
    head = next((path.name for path in spec.head_files if path.stem == name), "")
    return f"{named([kind])} vectors are not compared: only FlagEmbedding reads {head}" if head else ""


def reference_vectors(spec: ModelSpec, kind: Kind, texts: list[str], truncate_dim: int | None = None) -> Any:
    """Encodes documents on the CPU in fp32, with the prompt and the maximum length of the spec, one by one.

    Args:
        spec: the model.
        kind: of the vectors.
        texts: ``n`` documents.
        truncate_dim: how many numbers of a dense vector to keep; None for all.

    Returns:
        Float32 ``[n, dimension]``, :class:`SparseVectors`, or :class:`TokenVectors` in float32 before token pooling.

    Raises:
        ModelError: sentence-transformers cannot load the model or encode with it.
    """
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        return REFERENCES[kind](spec, texts, truncate_dim)
    except Exception as error:
        raise ModelError(f"{spec.folder}: sentence-transformers cannot embed with it ({first_line(error)})") from error


def _dense(spec: ModelSpec, texts: list[str], truncate_dim: int | None) -> npt.NDArray[np.float32]:
    if spec.kinds[0] == SPARSE:  # a sparse autoencoder: the dense vectors are those that it is given
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(modules=[*_sparse_model(spec).children()][:-1], device="cpu")
    else:
        model = _dense_model(spec, truncate_dim)
    found = _limited(model, spec).encode(texts, batch_size=1, prompt=spec.prompt, show_progress_bar=False)
    return np.asarray(found, np.float32)


def _sparse(spec: ModelSpec, texts: list[str], truncate_dim: int | None) -> SparseVectors:
    del truncate_dim
    model = _limited(_sparse_model(spec), spec)
    found = model.encode(texts, batch_size=1, prompt=spec.prompt, task=DOCUMENT, show_progress_bar=False)
    return SparseVectors.of_rows(found.to_dense().numpy().astype(np.float32))


def _token(spec: ModelSpec, texts: list[str], truncate_dim: int | None) -> TokenVectors:
    """Token vectors; of a model that was not trained for them, the normalized hidden states of its transformer."""
    del truncate_dim
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask

    assert spec.multi_vector is not None
    if spec.multi_vector.trained:
        loaded = MultiVectorEncoder(str(spec.folder), **_loading(spec))
        modules = [module for module in loaded.children() if not isinstance(module, HierarchicalTokenPooling)]
    else:
        transformer = next(iter(_dense_model(spec).children()))
        modules = [transformer, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    model = _limited(MultiVectorEncoder(modules=modules, device="cpu"), spec)
    model[0].document_length = None  # the spec's length is that of documents
    found = model.encode(
        texts, batch_size=1, prompt=spec.prompt, task=DOCUMENT, convert_to_numpy=True, show_progress_bar=False
    )
    return TokenVectors.of_lengths(np.concatenate(found).astype(np.float32), np.array([*map(len, found)]))


REFERENCES: dict[Kind, Callable[[ModelSpec, list[str], int | None], Any]] = {
    DENSE: _dense,
    SPARSE: _sparse,
    MULTI_VECTOR: _token,
}


def _dense_model(spec: ModelSpec, truncate_dim: int | None = None) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(spec.folder), truncate_dim=truncate_dim, **_loading(spec))


def _sparse_model(spec: ModelSpec) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(spec.folder), **_loading(spec))


def _loading(spec: ModelSpec) -> dict[str, Any]:
    options = {} if spec.static else {"dtype": "float32"}
    return {"device": "cpu", "trust_remote_code": spec.remote_code, "model_kwargs": options}


def _limited(model: Any, spec: ModelSpec) -> Any:
    if spec.length_limit:
        model.max_seq_length = spec.max_seq_length
    return model
