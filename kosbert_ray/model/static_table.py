"""Reads the table of a static embedding model, which has a vector for each token id. Loads without torch.

sentence-transformers stores the table as ``embedding.weight``. model2vec stores ``embeddings`` and may add ``mapping``
(token id to row) and ``weights`` (a factor per token id).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import ModelError
from kosbert_ray.model.tensors import read_shapes, read_tensors

TABLE, MODEL2VEC_TABLE, MAPPING, WEIGHTS = "embedding.weight", "embeddings", "mapping", "weights"


def read_width(paths: Sequence[Path]) -> int:
    """Returns the length of a vector, from the header of the weights.

    Args:
        paths: the weights.

    Raises:
        ModelError: they cannot be read, or hold no table.
    """
    name, shape = _table_shape(paths, read_shapes(paths))
    if len(shape) != 2:
        raise ModelError(f"{paths[0]}: {name} has {len(shape)} dimensions instead of 2")
    return shape[1]


def read_table(paths: Sequence[Path]) -> npt.NDArray[np.float32]:
    """Returns the vector of each token id, float32 ``[vocabulary, width]``, whatever type the weights have.

    Args:
        paths: the weights, as safetensors.

    Raises:
        ModelError: they cannot be read, hold no table, or contradict each other.
    """
    tensors = {name: array for path in paths for name, array in read_tensors(path).items()}
    name, _ = _table_shape(paths, {name: array.shape for name, array in tensors.items()})
    table = tensors[name].astype(np.float32, copy=False)
    if name == TABLE:
        return table
    if MAPPING in tensors:
        rows = tensors[MAPPING].astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(table):
            raise ModelError(f"{paths[0]}: {MAPPING} names rows beyond the {len(table)} of {name}")
        table = table[rows]
    if WEIGHTS in tensors:
        factors = tensors[WEIGHTS].astype(np.float32, copy=False)
        if factors.shape != table.shape[:1]:
            raise ModelError(f"{paths[0]}: {WEIGHTS} has shape {list(factors.shape)} for {len(table)} token ids")
        table = table * factors[:, None]
    return table


def _table_shape(paths: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """Returns name and shape of the table among the weights' tensors."""
    for name in (TABLE, MODEL2VEC_TABLE):
        if name in shapes:
            return name, shapes[name]
    raise ModelError(f"{paths[0]}: not the weights of a static embedding model (neither {TABLE} nor {MODEL2VEC_TABLE})")
