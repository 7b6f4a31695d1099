"""Sparse vectors of queries without a transformer: each token that occurs has the weight that the model gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import read_object, weight_paths
from kosbert_ray.model.lengths import UNLIMITED
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.tensors import read_tensors
from kosbert_ray.model.vector_heads import Splade
from kosbert_ray.vectors.sparse import SparseVectors

WEIGHT = "weight"  # the tensor's name


class WeightedQueries:
    """Gives queries the weights of their tokens. Special tokens are not among them.

    Source: ``SparseStaticEmbedding`` of sentence-transformers 6.

    Raises:
        ModelError: the tokenizer or the weights cannot be loaded, do not fit the vectors of documents, or are below 0.
    """

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.queries is not None and isinstance(spec.sparse, Splade)
        from transformers import AutoTokenizer

        self._folder, self._limit = spec.queries.folder, spec.sparse.limit
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        except Exception as error:  # transformers raises many types
            raise ModelError(f"{self._folder}: cannot load the tokenizer ({first_line(error)})") from error
        self._weights = self._read_weights(spec)
        dimension = spec.sparse.dimension
        if len(self._weights) != dimension or len(self._tokenizer) > dimension:
            raise ModelError(
                f"{self._folder}: has {len(self._weights):,} weights for {len(self._tokenizer):,} tokens, and the vectors "
                f"of documents have {dimension:,} numbers"
            )
        if negative := int((self._weights < 0).sum()):
            raise ModelError(f"{self._folder}: {negative:,} of its weights are below 0, which is not supported")

    def _read_weights(self, spec: ModelSpec) -> npt.NDArray[np.float32]:
        """Returns the weight of each token id, float32 ``[dimension]``."""
        assert spec.queries is not None and spec.sparse is not None
        if spec.queries.table is None:
            (path,) = weight_paths(self._folder)
            tensors = read_tensors(path)
            if WEIGHT not in tensors or tensors[WEIGHT].ndim != 1:
                raise ModelError(f"{path}: not the weights of tokens (no vector named {WEIGHT})")
            return tensors[WEIGHT].astype(np.float32, copy=False)
        by_token = read_object(spec.queries.table)
        weights = np.zeros(spec.sparse.dimension, np.float32)
        # A token that the tokenizer does not have sets the weight of its unknown token, as in sentence-transformers.
        weights[self._tokenizer.convert_tokens_to_ids([*by_token])] = [*by_token.values()]
        return weights

    def __call__(self, texts: Sequence[str], prompt: str) -> SparseVectors:
        """Returns the vectors of texts.

        Args:
            texts: the queries.
            prompt: text to put before each.
        """
        if not texts:
            return SparseVectors.empty()
        found: list[list[int]] = self._tokenizer(
            [prompt + text for text in texts],
            truncation=self._tokenizer.model_max_length < UNLIMITED,
            add_special_tokens=False,
        )["input_ids"]
        ids = [np.unique(np.array(each, np.int64)) for each in found]
        indices = np.concatenate(ids)
        rows = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
        values = self._weights[indices]
        kept = values > 0
        finite = np.ones(len(ids), bool)
        return SparseVectors.of_coordinates(rows[kept], indices[kept], values[kept], finite).strongest(self._limit)
