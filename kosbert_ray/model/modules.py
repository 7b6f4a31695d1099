"""Reads the modules of a sentence-transformers folder: ``modules.json``, the pooling config and the head's configs.

Covers sentence-transformers' formats up to its version 6. A plain transformers folder counts as a transformer with mean
pooling, and model2vec's own folder as a static embedding. Loads without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import MODULES, ROUTER, read_json, read_object
from kosbert_ray.model.lengths import text_config
from kosbert_ray.model.pooling import POOLING

# Before version 5.5 the pooling config had a flag per mode; several are concatenated in this order.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TRANSFORMER, STATIC = "Transformer", "StaticEmbedding"
MASKED, SPLADE, MASK, TOKEN_POOLING = "MLMTransformer", "SpladePooling", "MultiVectorMask", "HierarchicalTokenPooling"
AUTOENCODER, QUERY_WEIGHTS = "SparseAutoEncoder", "SparseStaticEmbedding"
SPLADES = ([TRANSFORMER, SPLADE], [MASKED, SPLADE])
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
MODEL2VEC = "model2vec"  # model_type of a static embedding that model2vec saved
WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")


# The fingerprint records the class names of the head's parts, so these names are part of the output format.
@dataclass(frozen=True)
class Dense:
    """A linear layer behind pooling; ``activation`` names a torch class such as ``torch.nn.modules.activation.Tanh``."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True)
class Normalize:
    """L2 normalization of the sentence vector."""


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalization of the sentence vector, with learned weights."""

    folder: Path
    dimension: int


@dataclass(frozen=True)
class Truncate:
    """Truncation of the sentence vector to its first ``dimension`` numbers.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
    """

    dimension: int


@dataclass(frozen=True)
class Linear:
    """A linear layer whose weights are a file of their own; no module of sentence-transformers."""

    path: Path
    in_features: int
    out_features: int
    bias: bool


HeadPart: TypeAlias = "Dense | LayerNorm | Linear | Normalize | Truncate"


@dataclass(frozen=True)
class QueryRoute:
    """A SparseStaticEmbedding that queries take instead of the other modules.

    Attributes:
        module: its type and subfolder.
        default: whether texts of which nobody says what they are count as queries.
    """

    module: tuple[str, str]
    default: bool


def read_modules(folder: Path) -> tuple[list[tuple[str, str]], QueryRoute | None]:
    """Reads the list of modules. Dropout is left out.

    Returns:
        Kind and subfolder of every module that documents take: Transformer and Pooling, or StaticEmbedding, then the
        head's. And the module that queries take instead; None if they take the same.

    Raises:
        ModelError: the folder is not a model, or a module is of an unsupported kind or outside the folder.
    """
    if not (folder / MODULES).exists():
        return _without_list(folder), None
    typed: list[tuple[str, str]] = []
    queries: QueryRoute | None = None
    for kind, path in _typed(folder / MODULES):
        modules, route = _routed(folder, path) if _class(kind) == "Router" else ([(kind, path)], None)
        typed, queries = [*typed, *modules], queries or route
    named = [*typed, queries.module] if queries else typed
    for kind, _ in named:
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"{folder}: module {kind} is custom code, which is not supported")
    modules = [(_class(kind), path) for kind, path in typed if _class(kind) != "Dropout"]
    modules = [(TRANSFORMER if kind == MASKED else kind, path) for kind, path in modules]
    kinds = [kind for kind, _ in modules]
    token_level = kinds[:1] == [TRANSFORMER] and MASK in kinds
    if kinds[:1] == [STATIC] and AUTOENCODER in kinds:
        raise ModelError(f"{folder}: a {AUTOENCODER} over a {STATIC} is not supported, only over a {TRANSFORMER}")
    if AUTOENCODER in kinds[:-1]:
        raise ModelError(f"{folder}: {AUTOENCODER} is supported last only, and its modules are {', '.join(kinds)}")
    if not (
        kinds[:2] == [TRANSFORMER, "Pooling"] or kinds[:1] == [STATIC] or kinds == [TRANSFORMER, SPLADE] or token_level
    ):
        raise ModelError(
            f"{folder}: its modules are {', '.join(kinds)}; supported are {TRANSFORMER}, Pooling (or {STATIC}), then "
            f"{' and '.join(READERS)}, and {AUTOENCODER}; {TRANSFORMER}, {SPLADE}; or {TRANSFORMER}, "
            f"{' and '.join(READERS)} with {MASK}"
        )
    for _, path in named:
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise ModelError(f"{folder}: modules.json points outside the folder ({path})")
    return modules, queries


def _typed(path: Path) -> list[tuple[str, str]]:
    """Returns type and subfolder of the entries of modules.json."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ModelError(f"{path}: must hold a list of modules")
    for entry in entries:
        if not isinstance(entry, dict) or not {"type", "path"} <= entry.keys():
            raise ModelError(f"{path}: {json.dumps(entry, ensure_ascii=False)[:60]} is no module with type and path")
    return [(str(entry["type"]), str(entry["path"])) for entry in entries]


def _class(kind: str) -> str:
    return kind.rpartition(".")[2]


def _routed(folder: Path, path: str) -> tuple[list[tuple[str, str]], QueryRoute | None]:
    """Returns type and subfolder of the modules of a Router, and what queries take instead of them if that differs."""
    settings = read_object(folder / path / ROUTER)
    types, structure, options = settings.get("types"), settings.get("structure"), settings.get("parameters") or {}
    if (
        not isinstance(types, dict)
        or not isinstance(structure, dict)
        or not structure
        or not all(isinstance(modules, list) and {*modules} <= types.keys() for modules in structure.values())
    ):
        raise ModelError(f"{folder / path / ROUTER}: must hold the modules of each route (structure) and their types")
    routes = {
        name: [(str(types[module]), "/".join(part for part in (path, module) if part)) for module in modules]
        for name, modules in structure.items()
    }
    documents, queries = routes.get("document", []), routes.get("query", [])
    if all(route == documents for route in routes.values()) or len(routes) == 1:
        return next(iter(routes.values())), None
    kinds = {name: [_class(kind) for kind, _ in route] for name, route in routes.items()}
    if kinds != {"query": [QUERY_WEIGHTS], "document": kinds.get("document")} or kinds["document"] not in SPLADES:
        described = "; ".join(f"{name}: {', '.join(modules)}" for name, modules in kinds.items())
        raise ModelError(
            f"{folder / path / ROUTER}: texts take other modules for {' than for '.join(routes)} ({described}), which is "
            f"supported only for queries with {QUERY_WEIGHTS} and documents with {', '.join(SPLADES[0])}"
        )
    if options.get("route_mappings"):
        raise ModelError(f"{folder / path / ROUTER}: route_mappings are not supported")
    return documents, QueryRoute(queries[0], (options.get("default_route") or next(iter(routes))) == "query")


def _without_list(folder: Path) -> list[tuple[str, str]]:
    """Returns the modules of a folder without modules.json: of model2vec or of transformers."""
    if not (folder / "config.json").exists():
        inner = next(iter(sorted(folder.glob("*/adapter_config.json"))), None)
        hint = f"; the adapter in it is {inner.parent}" if inner else ""
        raise ModelError(f"{folder}: not a model folder (neither modules.json nor config.json){hint}")
    config = read_object(folder / "config.json")
    if config.get("model_type") == MODEL2VEC:
        return [(STATIC, ""), *([("Normalize", "")] if config.get("normalize") else [])]
    return [(TRANSFORMER, ""), ("Pooling", "")]


def read_pooling(folder: Path, name: str, config: dict[str, Any], plain: str) -> tuple[tuple[str, ...], bool, int]:
    """Reads the pooling config.

    Args:
        folder: the model.
        name: subfolder of the pooling module; empty for a plain transformers folder.
        config: the transformer's config.
        plain: mode of a plain transformers folder.

    Returns:
        The pooling modes, whether a prompt's tokens are pooled, and the length of the pooled vector.

    Raises:
        ModelError: a mode is not supported, or no config gives the width.
    """
    hidden = hidden_width(config)
    path = folder / name / "config.json"
    settings = read_object(path) if name else {"pooling_mode": plain}
    mode = settings.get("pooling_mode")
    if mode is None:
        mode = [name for flag, name in POOLING_FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    for each in modes:
        if each not in POOLING:
            raise ModelError(f"{path}: pooling mode {each!r} is not supported; supported are {', '.join(POOLING)}")
    dimension = int(settings.get("embedding_dimension") or settings.get("word_embedding_dimension") or hidden)
    if not dimension:
        kind = config.get("model_type", "unknown")
        raise ModelError(f"{folder}: the config.json of this {kind} model does not give its width (hidden_size)")
    return modes, bool(settings.get("include_prompt", True)), dimension * len(modes)


def read_head(folder: Path, modules: list[tuple[str, str]], features: str = SENTENCE) -> tuple[HeadPart, ...]:
    """Reads the modules behind pooling, or of token vectors those behind the transformer.

    Args:
        folder: the model.
        modules: kind and subfolder of each.
        features: what they read and write.

    Raises:
        ModelError: a module is of an unsupported kind, or reads or writes something else than ``features``.
    """
    return tuple(_read_part(folder / path, kind, features) for kind, path in modules)


def _read_part(folder: Path, kind: str, features: str) -> HeadPart:
    settings = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    read = settings.get("module_input_name") or (TOKENS if kind == "Dense" and features == TOKENS else SENTENCE)
    for key, value in (("module_input_name", read), ("module_output_name", settings.get("module_output_name") or read)):
        if value != features:
            raise ModelError(f"{folder}: {key} {value!r} is not supported, only {features}")
    if kind not in READERS:
        raise ModelError(
            f"{folder}: module {kind} is not supported; supported are {TRANSFORMER}, Pooling, {' and '.join(READERS)}"
        )
    return READERS[kind](folder, settings)


def _read_dense(folder: Path, settings: dict[str, Any]) -> Dense:
    return Dense(
        folder=folder,
        in_features=int(settings["in_features"]),
        out_features=int(settings["out_features"]),
        bias=bool(settings.get("bias", True)),
        activation=settings.get("activation_function", "torch.nn.modules.activation.Tanh"),
        residual=bool(settings.get("use_residual")),
    )


# By the last part of the module's type in modules.json. ``head.LAYERS`` has the torch module of each.
READERS: dict[str, Callable[[Path, dict[str, Any]], HeadPart]] = {
    "Dense": _read_dense,
    "LayerNorm": lambda folder, settings: LayerNorm(folder, int(settings["dimension"])),
    "Normalize": lambda _folder, _settings: Normalize(),
}


def output_width(head: tuple[HeadPart, ...], width: int) -> int:
    """Returns the length of a head's output.

    Args:
        head: the modules.
        width: length of the vectors that they are given.

    Raises:
        ModelError: a Dense layer takes another length.
    """
    for part in head:
        if isinstance(part, Dense):
            if part.in_features != width:
                raise ModelError(f"{part.folder}: takes {part.in_features} features, but gets {width}")
            width = part.out_features
    return width


def hidden_width(config: dict[str, Any]) -> int:
    """Returns the length of a hidden state by the transformer's config; 0 if it does not say."""
    text = text_config(config)
    return next((int(text[key]) for key in WIDTH_KEYS if isinstance(text.get(key), int)), 0)
