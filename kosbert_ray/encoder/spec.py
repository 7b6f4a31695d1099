"""What a model folder says of itself, read without torch: modules, pooling, lengths, prompts, and the hashes of its files.

The format is sentence-transformers' (``modules.json`` and a folder per module, as of its version 6, older names
included); a plain transformers folder counts as one with mean pooling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kosbert_ray.errors import ModelError, first_line

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens")
# Before version 5.5 Pooling had a flag per mode; several at once are concatenated, in this order.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# RoBERTa numbers positions from padding_idx + 1, so that many of its position embeddings are never used.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")
HASH_BLOCK_BYTES = 4 * 2**20
UNLIMITED = 10**6  # tokenizers without a length say 1e30


@dataclass(frozen=True)
class SpecOptions:
    """What a user may ask of a model folder.

    ``max_seq_length`` overrules the model's own, in tokens with the special ones. ``prompt`` is put before every text and
    overrules ``prompt_name``, which picks one of the model's own; with neither, the model's default prompt is used.
    ``allow_pickle`` accepts weights in ``pytorch_model.bin``; ``allow_remote_code`` runs a model's own Python code.
    ``truncate_dim`` keeps the first so many numbers of each vector, made of length 1 again if the model's are.
    """

    max_seq_length: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    allow_pickle: bool = False
    allow_remote_code: bool = False
    truncate_dim: int | None = None


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling; ``activation`` is a torch class such as ``torch.nn.modules.activation.Tanh``."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True)
class Normalize:
    """L2 normalisation of the sentence vector."""


@dataclass(frozen=True)
class Truncate:
    """The first ``dimension`` numbers of the sentence vector only.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
    """

    dimension: int


HeadPart: TypeAlias = "Dense | Normalize | Truncate"


@dataclass(frozen=True)
class ModelSpec:
    """All that a model folder says of how texts become vectors.

    ``max_seq_length`` counts special tokens. ``prompt`` is put before every text. ``dimension`` is the vector's length.
    ``weight_files`` are the weights and configs of all modules, ``tokenizer_files`` the tokenizer's own. ``remote_code``:
    whether the model's own Python code is to be run, which is then among the ``weight_files``.
    """

    folder: Path
    transformer: Path
    model_type: str
    max_seq_length: int
    do_lower_case: bool
    pooling: tuple[str, ...]
    include_prompt: bool
    head: tuple[HeadPart, ...]
    prompt: str
    dimension: int
    weight_files: tuple[Path, ...]
    tokenizer_files: tuple[Path, ...]
    remote_code: bool = False
    notices: tuple[str, ...] = ()

    @property
    def normalized(self) -> bool:
        """Whether the vectors have length 1."""
        return bool(self.head) and isinstance(self.head[-1], Normalize)


def read_spec(folder: Path, options: SpecOptions = SpecOptions()) -> ModelSpec:
    """Reads a sentence-transformers or a transformers folder.

    Raises:
        ModelError: a file is missing or broken, a module or pooling mode is not supported, or an option does not fit.
    """
    notices: list[str] = []
    modules = _modules(folder, notices)
    transformer = folder / modules[0][1]
    config = _json(transformer / "config.json")
    remote_code = _remote_code(transformer, options.allow_remote_code)
    settings: dict[str, Any] = next(
        (_json(transformer / name) for name in TRANSFORMER_CONFIGS if (transformer / name).exists()), {}
    )
    positions = _positions(config)
    length = options.max_seq_length or settings.get("max_seq_length") or _tokenizer_length(transformer, positions)
    if positions and length > positions:
        if options.max_seq_length:
            raise ModelError(f"{folder}: model.max_seq_length is {length}, but the model has {positions} positions")
        length = positions
    pooling, include_prompt, dimension = _pooling(folder, modules, config)
    head: tuple[HeadPart, ...] = tuple(
        found for kind, path in modules[2:] if (found := _head(folder, kind, path)) is not None
    )
    for part in head:
        if isinstance(part, Dense):
            if part.in_features != dimension:
                raise ModelError(f"{part.folder}: takes {part.in_features} features, but gets {dimension}")
            dimension = part.out_features
    if options.truncate_dim:
        if options.truncate_dim > dimension:
            raise ModelError(f"{folder}: model.truncate_dim is {options.truncate_dim}, but its vectors have {dimension}")
        dimension = options.truncate_dim
        again = head[-1:] if head and isinstance(head[-1], Normalize) else ()
        head = (*head, Truncate(dimension), *again)
    weights = _weights(transformer, options.allow_pickle)
    for part in head:
        weights += _weights(part.folder, options.allow_pickle) if isinstance(part, Dense) else []
    tokenizer = [path for name in TOKENIZER_FILES for path in sorted(transformer.glob(name))]
    if not any(path.name in VOCABULARIES or path.suffix == ".model" for path in tokenizer):
        # transformers would make an empty tokenizer of it, to which every word is unknown.
        raise ModelError(f"{transformer}: no tokenizer in it (none of {', '.join(VOCABULARIES)}, *.model)")
    configs = [path for _, name in modules if (path := folder / name / "config.json").exists()]
    return ModelSpec(
        folder=folder,
        transformer=transformer,
        model_type=config.get("model_type", "unknown"),
        max_seq_length=int(length),
        do_lower_case=bool(settings.get("do_lower_case")),
        pooling=pooling,
        include_prompt=include_prompt,
        head=head,
        prompt=_prompt(folder, options),
        dimension=dimension,
        weight_files=(*weights, *configs, *(sorted(transformer.glob("*.py")) if remote_code else ())),
        tokenizer_files=tuple(tokenizer),
        remote_code=remote_code,
        notices=tuple(notices),
    )


def _modules(folder: Path, notices: list[str]) -> list[tuple[str, str]]:
    """(kind, subfolder) of every module: Transformer, Pooling, then what follows."""
    if not (folder / "modules.json").exists():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder}: not a model folder (neither modules.json nor config.json)")
        notices.append(f"{folder} is a plain transformers model: its token vectors are mean-pooled")
        return [("Transformer", ""), ("Pooling", "")]
    modules = [
        (str(entry["type"]).rpartition(".")[2], str(entry["path"]))
        for entry in _json(folder / "modules.json")
        if not str(entry["type"]).endswith(".Dropout")
    ]
    for entry in _json(folder / "modules.json"):
        if not str(entry["type"]).startswith("sentence_transformers."):
            raise ModelError(f"{folder}: module {entry['type']} is code of the model's own, which is not supported")
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ModelError(
            f"{folder}: its modules are {', '.join(kinds)}; supported are Transformer, Pooling, then Dense and Normalize"
        )
    for _, path in modules:
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise ModelError(f"{folder}: modules.json points outside the folder ({path})")
    return modules


def _remote_code(transformer: Path, allowed: bool) -> bool:
    """Whether the folder asks for Python code of its own (``auto_map``); raises ModelError if that is not allowed."""
    for name in ("config.json", "tokenizer_config.json"):
        path = transformer / name
        if path.exists() and _json(path).get("auto_map"):
            if allowed:
                return True
            raise ModelError(
                f"{path}: the model brings Python code of its own (auto_map); read it, and if you trust it set "
                "model.allow_remote_code=true"
            )
    return False


def _positions(config: dict[str, Any]) -> int | None:
    """The longest sequence that the position embeddings allow."""
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in OFFSET_POSITIONS:
        return int(positions) - int(config.get("pad_token_id") or 0) - 1
    return int(positions) if positions and positions > 0 else None


def _tokenizer_length(transformer: Path, positions: int | None) -> int:
    path = transformer / "tokenizer_config.json"
    length = _json(path).get("model_max_length") if path.exists() else None
    if length and length < UNLIMITED:
        return int(length)
    return positions or 512


def _pooling(folder: Path, modules: list[tuple[str, str]], config: dict[str, Any]) -> tuple[tuple[str, ...], bool, int]:
    hidden = int(config.get("hidden_size") or config.get("dim") or 0)
    path = folder / modules[1][1] / "config.json"
    settings = _json(path) if modules[1][1] else {"pooling_mode": "mean"}
    mode = settings.get("pooling_mode")
    if mode is None:
        mode = [name for flag, name in POOLING_FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    for name in modes:
        if name not in POOLING_MODES:
            raise ModelError(f"{path}: pooling mode {name!r} is not supported; supported are {', '.join(POOLING_MODES)}")
    dimension = int(settings.get("embedding_dimension") or settings.get("word_embedding_dimension") or hidden)
    return modes, bool(settings.get("include_prompt", True)), dimension * len(modes)


def _head(folder: Path, kind: str, path: str) -> Dense | Normalize | None:
    where = folder / path
    settings = _json(where / "config.json") if (where / "config.json").exists() else {}
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"{where}: {key} {settings[key]!r} is not supported, only sentence_embedding")
    if kind == "Normalize":
        return Normalize()
    if kind == "Dense":
        return Dense(
            folder=where,
            in_features=int(settings["in_features"]),
            out_features=int(settings["out_features"]),
            bias=bool(settings.get("bias", True)),
            activation=settings.get("activation_function", "torch.nn.modules.activation.Tanh"),
            residual=bool(settings.get("use_residual")),
        )
    raise ModelError(f"{where}: module {kind} is not supported; supported are Transformer, Pooling, Dense and Normalize")


def _prompt(folder: Path, options: SpecOptions) -> str:
    if options.prompt is not None:
        return options.prompt
    path = folder / "config_sentence_transformers.json"
    settings = _json(path) if path.exists() else {}
    prompts = settings.get("prompts") or {}
    name = options.prompt_name or settings.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise ModelError(f"{folder}: the model has no prompt {name!r}; it has {known} (set model.prompt_name)")
    return prompts[name] or ""


def _weights(folder: Path, allow_pickle: bool) -> list[Path]:
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        return safe
    pickled = sorted(folder.glob("*.bin"))
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ModelError(
            f"{folder}: its weights are pickled ({pickled[0].name}); set model.allow_pickle=true if you trust them, "
            "or save the model as safetensors"
        )
    raise ModelError(f"{folder}: no *.safetensors in it (a pickled model needs model.allow_pickle=true)")


def sha256(folder: Path, files: Sequence[Path]) -> str:
    """One digest over files below ``folder``: their names and contents. Most of it runs outside the GIL."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing from the model folder") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
