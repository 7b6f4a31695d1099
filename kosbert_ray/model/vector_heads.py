"""The heads of sparse and token vectors, read from a model folder. Loads without torch.

Covers the modules of sentence-transformers 6: ``SparseEncoder`` and ``MultiVectorEncoder``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import read_object
from kosbert_ray.model.modules import MASK, TOKEN_POOLING, TOKENS, HeadPart, Linear, Normalize, output_width, read_head
from kosbert_ray.vectors.token_pooling import TokenPooling

SPLADE_VALUES = 200.0
LONGEST_EXPANSION = 8192  # tokens that a query is extended to
SPLADE_OPTIONS = {"pooling_strategy": ("max", "sum"), "activation_function": ("relu", "log1p_relu")}


@dataclass(frozen=True)
class Splade:
    """Pooling of a masked language model's logits to a sparse vector over its vocabulary.

    Attributes:
        dimension: size of the vocabulary.
        strategy: "max" or "sum" over the tokens.
        activation: "relu" for ``log(1 + relu(x))``, "log1p_relu" for its ``log(1 + ...)``.
        limit: how many of its largest values a vector keeps; None for all.
    """

    dimension: int
    strategy: str
    activation: str
    limit: int | None = None

    def typical_values(self, tokens: float) -> float:
        """Returns about how many values a text's vector has: the order of what published models are trained to."""
        del tokens
        return min(SPLADE_VALUES, self.limit or SPLADE_VALUES)

    def __str__(self) -> str:
        return f"splade {self.strategy} {self.activation}" + (f" top {self.limit}" if self.limit else "")


@dataclass(frozen=True)
class AutoEncoder:
    """The largest activations of a sparse autoencoder over the dense vector.

    Source: Wen et al. 2025, "Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation" (arXiv:2503.01776).

    Attributes:
        folder: its folder.
        dimension: number of activations.
        in_features: length of the dense vector.
        limit: how many activations a vector keeps.
        normalize: whether the dense vector is standardized first: mean 0 and standard deviation 1.
    """

    folder: Path
    dimension: int
    in_features: int
    limit: int
    normalize: bool

    def typical_values(self, tokens: float) -> float:
        """Returns about how many values a text's vector has."""
        del tokens
        return self.limit

    def __str__(self) -> str:
        return f"autoencoder top {self.limit}" + (" of standardized" if self.normalize else "")


@dataclass(frozen=True)
class LexicalWeights:
    """A weight for each token by a linear layer over its hidden state; a text's vector has the largest of each token id.

    Attributes:
        layer: the linear layer.
        dimension: size of the vocabulary.
    """

    layer: Linear
    dimension: int

    def typical_values(self, tokens: float) -> float:
        """Returns about how many values the vector of a text with ``tokens`` tokens has."""
        return tokens

    def __str__(self) -> str:
        return "lexical weights"


SparseHead: TypeAlias = "Splade | AutoEncoder | LexicalWeights"


@dataclass(frozen=True)
class Expansion:
    """Tokens that a query is extended with, whose vectors count like those of its own tokens.

    Attributes:
        length: number of tokens that a query has at least.
        fixed: whether longer queries are cut to ``length``.
        token: the token; None for the tokenizer's mask token.
        attend: whether a query's own tokens attend to it.
    """

    length: int
    fixed: bool = True
    token: str | None = None
    attend: bool = False


@dataclass(frozen=True)
class TokenHead:
    """The way from hidden states to token vectors.

    Attributes:
        head: the modules behind the transformer, which apply to each token.
        dimension: length of a token vector.
        skiplist: tokens that documents have no vector for.
        query_skiplist: tokens that queries have no vector for.
        skip: number of leading tokens that have no vector.
        pooling: pooling of a document's token vectors, if the model has any.
        document_length: the most tokens of a document; None for those of the model.
        query_length: the most tokens of a query; None for those of the model.
        expansion: what queries are extended with, if anything.
        trained: whether the model was trained for token vectors.
    """

    head: tuple[HeadPart, ...]
    dimension: int
    skiplist: tuple[str, ...] = ()
    query_skiplist: tuple[str, ...] = ()
    skip: int = 0
    pooling: TokenPooling | None = None
    document_length: int | None = None
    query_length: int | None = None
    expansion: Expansion | None = None
    trained: bool = True

    @property
    def query_limit(self) -> int | None:
        """The most tokens of a query; None for those of the model."""
        if self.expansion is None:
            return self.query_length
        if self.expansion.fixed:
            return self.expansion.length
        return max(self.query_length, self.expansion.length) if self.query_length else None

    def described(self) -> tuple[str, ...]:
        """Returns what decides the vectors of documents, for an output's fingerprint."""
        parts = [type(part).__name__ for part in self.head]
        if self.skiplist:
            parts.append(f"skiplist {' '.join(self.skiplist)}")
        if self.skip:
            parts.append(f"skip {self.skip}")
        return (*parts, *([str(self.pooling)] if self.pooling else []))


def read_splade(folder: Path, vocabulary: int) -> Splade:
    """Reads the config of SpladePooling.

    Args:
        folder: its folder.
        vocabulary: size of the vocabulary.

    Raises:
        ModelError: an option is not supported.
    """
    settings = read_object(folder / "config.json")
    for name, known in SPLADE_OPTIONS.items():
        if settings.get(name, known[0]) not in known:
            raise ModelError(f"{folder}: {name} {settings[name]!r} is not supported; supported are {', '.join(known)}")
    return Splade(vocabulary, *(settings.get(name, known[0]) for name, known in SPLADE_OPTIONS.items()))


def read_autoencoder(folder: Path, width: int) -> AutoEncoder:
    """Reads the config of SparseAutoEncoder.

    Args:
        folder: its folder.
        width: length of the dense vectors that it is given.

    Raises:
        ModelError: it takes dense vectors of another length.
    """
    settings = read_object(folder / "config.json")
    taken = _whole(folder, settings, "input_dim")
    if taken != width:
        raise ModelError(f"{folder}: takes {taken} features, but gets {width}")
    return AutoEncoder(
        folder,
        dimension=_whole(folder, settings, "hidden_dim", 512),
        in_features=taken,
        limit=_whole(folder, settings, "k", 8),
        normalize=bool(settings.get("normalize")),
    )


def plain_token_head(width: int) -> TokenHead:
    """Returns the way to the normalized hidden states of a model that was not trained for token vectors.

    Args:
        width: length of a hidden state.
    """
    return TokenHead((Normalize(),), width, trained=False)


def read_token_head(folder: Path, modules: list[tuple[str, str]], width: int, settings: dict[str, Any]) -> TokenHead:
    """Reads the modules of a ``MultiVectorEncoder`` behind its transformer.

    Args:
        folder: the model.
        modules: kind and subfolder of each.
        width: length of a hidden state.
        settings: the content of the transformer's sentence_bert_config.json.

    Raises:
        ModelError: a module or an option is not supported.
    """
    kinds = [kind for kind, _ in modules]
    if TOKEN_POOLING in kinds and kinds.index(TOKEN_POOLING) != len(kinds) - 1:
        raise ModelError(
            f"{folder}: {TOKEN_POOLING} is supported as the last module only, and the modules are {', '.join(kinds)}"
        )
    parts = read_head(folder, [module for module in modules if module[0] not in (MASK, TOKEN_POOLING)], TOKENS)
    mask = _options(folder, modules, MASK)
    if mask.get("keep_only_token_ids"):
        raise ModelError(f"{folder}: keep_only_token_ids of {MASK} is for images, which are not supported")
    words, tasks = mask.get("skiplist_words") or [], mask.get("skiplist_tasks") or ["document"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ModelError(f"{folder}: skiplist_words of {MASK} must be a list of tokens")
    skiplist = tuple(words)
    return TokenHead(
        parts,
        output_width(parts, width),
        skiplist=skiplist if "document" in tasks else (),
        query_skiplist=skiplist if "query" in tasks else (),
        pooling=_token_pooling(_options(folder, modules, TOKEN_POOLING)) if TOKEN_POOLING in kinds else None,
        document_length=_length(folder, settings, "document_length"),
        query_length=_length(folder, settings, "query_length"),
        expansion=_expansion(folder, settings.get("query_expansion")),
    )


def _whole(folder: Path, settings: dict[str, Any], name: str, default: int | None = None, most: int | None = None) -> int:
    """Returns a whole number above 0 from a module's config; raises ModelError if it is none."""
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most and value > most):
        limit = f" of at most {most:,}" if most else ""
        raise ModelError(f"{folder}: {name} {value!r} must be a whole number above 0{limit}")
    return value


def _length(folder: Path, settings: dict[str, Any], name: str) -> int | None:
    return None if settings.get(name) is None else _whole(folder, settings, name)


def _options(folder: Path, modules: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    path = folder / next(path for name, path in modules if name == kind) / "config.json"
    return read_object(path) if path.exists() else {}


def _token_pooling(settings: dict[str, Any]) -> TokenPooling | None:
    if "document" not in (settings.get("tasks") or ["document"]):
        return None
    # Configs that were saved before there was this option mean false.
    normalize = bool(settings.get("normalize_embeddings", False))
    return TokenPooling(float(settings.get("pool_factor", 1)), int(settings.get("num_protected_tokens", 1)), normalize)


def _expansion(folder: Path, settings: dict[str, Any] | None) -> Expansion | None:
    if settings is None:
        return None
    if not isinstance(settings, dict) or settings.get("strategy") not in ("fixed", "min"):
        raise ModelError(f"{folder}: query_expansion {json.dumps(settings, ensure_ascii=False)} is not supported")
    length = _whole(folder, settings, "length", most=LONGEST_EXPANSION)
    return Expansion(length, settings["strategy"] == "fixed", settings.get("token"), bool(settings.get("attend")))
