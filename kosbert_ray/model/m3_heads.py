"""Reads the heads of BGE-M3 beside a dense model: linear layers to a weight and to a vector for each token.

Source: ``M3Embedder`` of FlagEmbedding 1.4 (https://github.com/FlagOpen/FlagEmbedding); Chen et al. 2024, "M3-Embedding"
(arXiv:2402.03216).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import COLBERT_LINEAR, SPARSE_LINEAR
from kosbert_ray.model.modules import Linear, Normalize
from kosbert_ray.model.tensors import read_shapes
from kosbert_ray.model.vector_heads import LexicalWeights, TokenHead


@dataclass(frozen=True)
class M3Heads:
    """The heads of BGE-M3 that a model has.

    Attributes:
        sparse: the way to sparse vectors, if the model has it.
        multi_vector: the way to token vectors, if the model has it.
    """

    sparse: LexicalWeights | None = None
    multi_vector: TokenHead | None = None


def read_m3_heads(paths: Sequence[Path], width: int, vocabulary: int) -> M3Heads:
    """Reads the heads.

    Args:
        paths: their weights.
        width: length of a hidden state.
        vocabulary: size of the vocabulary.

    Raises:
        ModelError: weights cannot be read, or are not those of a linear layer over hidden states.
    """
    layers = {path.stem: _read_linear(path, width) for path in paths}
    sparse, tokens = layers.get(SPARSE_LINEAR), layers.get(COLBERT_LINEAR)
    if sparse and sparse.out_features != 1:
        raise ModelError(f"{sparse.path}: gives {sparse.out_features} numbers for a token instead of its weight")
    return M3Heads(
        LexicalWeights(sparse, vocabulary) if sparse else None,
        # The first token's vector is the dense one.
        TokenHead((tokens, Normalize()), tokens.out_features, skip=1) if tokens else None,
    )


def _read_linear(path: Path, width: int) -> Linear:
    shapes = read_shapes([path])
    weight = shapes.get("weight", ())
    if len(weight) != 2 or weight[1] != width or shapes.get("bias", weight[:1]) != weight[:1] or len(shapes) > 2:
        described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ModelError(f"{path}: not a linear layer over hidden states of {width} numbers, but {described or 'empty'}")
    return Linear(path, width, weight[0], "bias" in shapes)
