"""What a model folder says of itself, read without torch: modules, pooling, lengths, prompts, and the hashes of its files.

The format is sentence-transformers' (``modules.json`` and a folder per module, as of its version 6, older names
included); a plain transformers folder counts as one with mean pooling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from kosbert_ray.encoder.files import MODULES, require_content, weight_names
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
# RoBERTa and its relatives number positions from padding_idx + 1, so that many of their embeddings are never used.
OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "data2vec-text",
    "xmod",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
)
PADDING_INDEX = 1  # of these, where config.json leaves it out as the default
# Positions are relative or rotary here: no table of embeddings ends at max_position_embeddings.
UNBOUNDED_POSITIONS = (
    "t5",
    "mt5",
    "umt5",
    "xlnet",
    "modernbert",
    "nomic_bert",
    "gte",
    "eurobert",
    "jina_embeddings_v3",
    "llama",
    "mistral",
    "ministral",
    "ministral3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
)
# Of these encoder-decoders sentence-transformers runs the encoder alone; so does this package of T5's kind only.
UNSUPPORTED_TYPES = (
    "udop",
    "longt5",
    "prophetnet",
    "switch_transformers",
    "blenderbot",
    "blenderbot-small",
    "m2m_100",
    "pegasus",
    "pegasus_x",
    "marian",
    "moonshine",
    "whisper",
    "t5gemma",
    "t5gemma2",
)
ROTARY_KEYS = ("rope_theta", "rope_parameters", "rope_scaling", "global_rope_theta", "rotary_emb_base")
WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
# Keys of sentence_bert_config.json whose content changes no vector, whatever it is.
HARMLESS_ARGUMENTS = {
    "add_pooling_layer",
    "attn_implementation",
    "cache_dir",
    "clean_up_tokenization_spaces",
    "device_map",
    "dtype",
    "local_files_only",
    "padding_side",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_cache",
    "use_fast",
}
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
HASH_BLOCK_BYTES = 4 * 2**20
UNLIMITED = 10**6  # tokenizers without a length say 1e30
FALLBACK_LENGTH = 512
ADAPTER = "adapter_config.json"
EMBEDDING_MODEL = "SentenceTransformer"
HIDDEN_STATE = ("last_hidden_state", ["last_hidden_state"])


@dataclass(frozen=True)
class SpecOptions:
    """What a user may ask of a model folder.

    ``max_seq_length`` overrules the model's own, in tokens with the special ones. ``prompt`` is put before every text and
    overrules ``prompt_name``, which picks one of the model's own; with neither, the model's default prompt is used.
    ``allow_remote_code`` runs a model's own Python code.
    ``truncate_dim`` keeps the first so many numbers of each vector, made of length 1 again if the model's are.
    """

    max_seq_length: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
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
    ``weight_files`` are the weights and configs of all modules, ``tokenizer_files`` the tokenizer's own;
    ``legacy_weight_files`` are what version 0.1.0 hashed as weights, which is the same unless other weights lie beside
    those that are used. ``remote_code``: whether the model's own Python code runs, which is then among the
    ``weight_files``.
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
    legacy_weight_files: tuple[Path, ...] = ()
    remote_code: bool = False
    notices: tuple[str, ...] = ()

    @property
    def normalized(self) -> bool:
        """Whether the vectors have length 1."""
        return bool(self.head) and isinstance(self.head[-1], Normalize)

    @property
    def pickled(self) -> bool:
        """True if some of the weights are pickles, which are converted before they are loaded."""
        return any(path.suffix == ".bin" for path in self.weight_files)

    def moved(self, folder: Path) -> ModelSpec:
        """The same model in a copy of its folder, whose weights may have been converted."""

        def there(path: Path) -> Path:
            return folder / path.relative_to(self.folder)

        head = tuple(replace(part, folder=there(part.folder)) if isinstance(part, Dense) else part for part in self.head)
        folders = [there(self.transformer), *(part.folder for part in head if isinstance(part, Dense))]
        weights = [path for inner in folders for path in _weights(inner)]
        others = [there(path) for path in self.weight_files if path.suffix not in (".safetensors", ".bin")]
        return replace(
            self,
            folder=folder,
            transformer=there(self.transformer),
            head=head,
            weight_files=(*weights, *others),
            tokenizer_files=tuple(map(there, self.tokenizer_files)),
            legacy_weight_files=(),
        )


def read_spec(folder: Path, options: SpecOptions = SpecOptions()) -> ModelSpec:
    """Reads a sentence-transformers or a transformers folder.

    Raises:
        ModelError: a file is missing or broken, an option does not fit, or the model asks for something that is not
            supported and would change its vectors.
    """
    notices: list[str] = []
    _refuse_adapter(folder)
    modules = _modules(folder, notices)
    transformer = folder / modules[0][1]
    _refuse_adapter(transformer)
    config = _json(transformer / "config.json")
    if not (folder / MODULES).exists() and _pools_last_token(config):
        raise ModelError(
            f"{transformer / 'config.json'}: a {config['architectures'][0]} without modules.json is pooled by its last "
            "token, which is not supported"
        )
    if config.get("model_type") in UNSUPPORTED_TYPES:
        raise ModelError(f"{transformer / 'config.json'}: models of type {config['model_type']} are not supported")
    remote_code = _remote_code(transformer, options.allow_remote_code)
    settings = _settings(transformer)
    length = _length(folder, transformer, config, settings, options, notices)
    pooling, include_prompt, dimension = _pooling(folder, modules, config)
    head: tuple[HeadPart, ...] = tuple(
        found for kind, path in modules[2:] if (found := _head(folder, kind, path)) is not None
    )
    for part in head:
        if isinstance(part, Dense):
            if part.in_features != dimension:
                raise ModelError(f"{part.folder}: takes {part.in_features} features, but gets {dimension}")
            dimension = part.out_features
    own = _own_settings(folder)
    if options.truncate_dim:
        if options.truncate_dim > dimension:
            raise ModelError(f"{folder}: model.truncate_dim is {options.truncate_dim}, but its vectors have {dimension}")
        dimension = options.truncate_dim
        again = head[-1:] if head and isinstance(head[-1], Normalize) else ()
        head = (*head, Truncate(dimension), *again)
    elif own.get("truncate_dim") and own["truncate_dim"] < dimension:
        # sentence-transformers does not normalise again what a model's own setting cuts.
        dimension = int(own["truncate_dim"])
        head = (*head, Truncate(dimension))
    folders = [transformer, *(part.folder for part in head if isinstance(part, Dense))]
    weights = [path for inner in folders for path in _weights(inner)]
    tokenizer = [path for name in TOKENIZER_FILES for path in sorted(transformer.glob(name))]
    if not any(path.name in VOCABULARIES or path.suffix == ".model" for path in tokenizer):
        # transformers would make an empty tokenizer of it, to which every word is unknown.
        raise ModelError(f"{transformer}: no tokenizer in it (none of {', '.join(VOCABULARIES)}, *.model)")
    require_content([*weights, *tokenizer])
    configs = [path for _, name in modules if (path := folder / name / "config.json").exists()]
    others = (*configs, *(sorted(transformer.glob("*.py")) if remote_code else ()))
    return ModelSpec(
        folder=folder,
        transformer=transformer,
        model_type=config.get("model_type", "unknown"),
        max_seq_length=length,
        do_lower_case=bool(settings.get("do_lower_case")),
        pooling=pooling,
        include_prompt=include_prompt,
        head=head,
        prompt=_prompt(folder, own, options),
        dimension=dimension,
        weight_files=(*weights, *others),
        tokenizer_files=tuple(tokenizer),
        legacy_weight_files=(*(path for inner in folders for path in _legacy_weights(inner)), *others),
        remote_code=remote_code,
        notices=tuple(notices),
    )


def _modules(folder: Path, notices: list[str]) -> list[tuple[str, str]]:
    """(kind, subfolder) of every module: Transformer, Pooling, then what follows."""
    if not (folder / MODULES).exists():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder}: not a model folder (neither modules.json nor config.json)")
        notices.append(f"{folder} is a plain transformers model: its token vectors are mean-pooled")
        return [("Transformer", ""), ("Pooling", "")]
    modules = [
        (str(entry["type"]).rpartition(".")[2], str(entry["path"]))
        for entry in _json(folder / MODULES)
        if not str(entry["type"]).endswith(".Dropout")
    ]
    for entry in _json(folder / MODULES):
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


def _refuse_adapter(folder: Path) -> None:
    """Raises ModelError for a PEFT adapter, which transformers applies or ignores by what is installed."""
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder / ADAPTER}: the model is a PEFT adapter; merge it into its base model (merge_and_unload) and save "
            "the result"
        )


def _pools_last_token(config: dict[str, Any]) -> bool:
    """True if sentence-transformers pools a plain folder of this architecture by its last token."""
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True) is not False


def _remote_code(transformer: Path, allowed: bool) -> bool:
    """Whether the folder asks for Python code of its own (``auto_map``); raises ModelError if that is not allowed."""
    for name in ("config.json", "tokenizer_config.json"):
        path = transformer / name
        code = _json(path).get("auto_map") if path.exists() else None
        if not code:
            continue
        if not allowed:
            raise ModelError(
                f"{path}: the model brings Python code of its own (auto_map); read it, and if you trust it set "
                "model.allow_remote_code=true"
            )
        elsewhere = next((place for place in _strings(code) if "--" in place), None)
        if elsewhere:
            repository = elsewhere.partition("--")[0]
            raise ModelError(
                f"{path}: the model's code is in another repository ({repository}), which is not supported; copy its *.py "
                "files into the model folder and remove the prefix from auto_map"
            )
        return True
    return False


def _strings(tree: Any) -> list[str]:
    """All strings in a tree of lists and mappings."""
    if isinstance(tree, str):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [text for item in inner for text in _strings(item)]


def _settings(transformer: Path) -> dict[str, Any]:
    """sentence_bert_config.json; raises ModelError for what is in it that changes vectors and is not supported."""
    path = next((transformer / name for name in TRANSFORMER_CONFIGS if (transformer / name).exists()), None)
    if path is None:
        return {}
    settings: dict[str, Any] = _json(path)
    unsupported = [name for name in ("query_length", "document_length", "query_expansion") if settings.get(name)]
    unsupported += [name for name in ("processing_kwargs", "tokenizer_name_or_path") if settings.get(name)]
    for name in ARGUMENTS:
        unsupported += [f"{name}.{key}" for key in settings.get(name) or {} if key not in HARMLESS_ARGUMENTS]
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        unsupported.append(f"transformer_task {settings['transformer_task']}")
    if settings.get("module_output_name", "token_embeddings") not in (None, "token_embeddings"):
        unsupported.append(f"module_output_name {settings['module_output_name']}")
    modalities = settings.get("modality_config") or {}
    for name, value in modalities.items():
        output = value.get("method_output_name") if isinstance(value, dict) else None
        if name == "message":
            unsupported.append("modality_config.message (a chat template)")
        elif name == "text" and (value.get("method") != "forward" or output not in HIDDEN_STATE):
            unsupported.append(f"modality_config.text {json.dumps(value)}")
    if unsupported:
        raise ModelError(f"{path}: {unsupported[0]} is not supported, and the vectors depend on it")
    return settings


def _own_settings(folder: Path) -> dict[str, Any]:
    """config_sentence_transformers.json; raises ModelError if it is of no embedding model."""
    path = folder / "config_sentence_transformers.json"
    settings: dict[str, Any] = _json(path) if path.exists() else {}
    if settings.get("model_type", EMBEDDING_MODEL) not in (None, EMBEDDING_MODEL):
        raise ModelError(f"{path}: a {settings['model_type']} is not supported, only a {EMBEDDING_MODEL}")
    return settings


def _length(
    folder: Path,
    transformer: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    options: SpecOptions,
    notices: list[str],
) -> int:
    """The most tokens of a text, special ones included."""
    positions = _positions(config)
    if options.max_seq_length:
        if positions and options.max_seq_length > positions:
            raise ModelError(
                f"{folder}: model.max_seq_length is {options.max_seq_length}, but the model has {positions} positions"
            )
        return options.max_seq_length
    length = settings.get("max_seq_length")
    if not length:
        path = transformer / "tokenizer_config.json"
        of_tokenizer = (_json(path).get("model_max_length") if path.exists() else None) or UNLIMITED
        trained = _text_config(config).get("max_position_embeddings") or UNLIMITED
        length = min(of_tokenizer, trained if trained > 0 else UNLIMITED, positions or UNLIMITED)
        if length >= UNLIMITED:
            length = FALLBACK_LENGTH
            notices.append(f"{folder} names no maximum length: texts are cut at {length} tokens (set model.max_seq_length)")
    return min(int(length), positions or UNLIMITED)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that is about text."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _positions(config: dict[str, Any]) -> int | None:
    """The longest sequence that the position embeddings allow; None where no table of embeddings limits it."""
    config = _text_config(config)
    kind = config.get("model_type")
    if kind in UNBOUNDED_POSITIONS or any(config.get(key) is not None for key in ROTARY_KEYS):
        return None
    if kind in ("deberta", "deberta-v2") and config.get("position_biased_input", True) is False:
        return None
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    if kind in OFFSET_POSITIONS:
        if not positions:
            return None
        padding = config.get("pad_token_id", PADDING_INDEX)
        return positions - (PADDING_INDEX if padding is None or kind == "mpnet" else int(padding)) - 1
    return positions if positions > 0 else None


def _pooling(folder: Path, modules: list[tuple[str, str]], config: dict[str, Any]) -> tuple[tuple[str, ...], bool, int]:
    text = _text_config(config)
    hidden = next((int(text[key]) for key in WIDTH_KEYS if isinstance(text.get(key), int)), 0)
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
    if not dimension:
        kind = config.get("model_type", "unknown")
        raise ModelError(f"{folder}: the width of a {kind} model is not in its config.json (hidden_size)")
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


def _prompt(folder: Path, own: dict[str, Any], options: SpecOptions) -> str:
    if options.prompt is not None:
        return options.prompt
    prompts = own.get("prompts") or {}
    name = options.prompt_name or own.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise ModelError(f"{folder}: the model has no prompt {name!r}; it has {known} (set model.prompt_name)")
    return prompts[name] or ""


def _weights(folder: Path) -> list[Path]:
    """The weights that a module loads, as they lie there."""
    names = weight_names(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        stray = next(iter(sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))), None)
        found = f"; {stray.name} is neither" if stray else ""
        raise ModelError(f"{folder}: no weights in it (model.safetensors or pytorch_model.bin{found})")
    paths = [folder / name for name in names]
    if len(paths) > 1 or "-of-" in names[0]:
        index = folder / f"{names[0].partition('-')[0]}{paths[0].suffix}.index.json"
        for name in sorted({str(shard) for shard in _json(index).get("weight_map", {}).values()} - {*names}):
            raise ModelError(f"{folder / name}: missing, and {index.name} names it")
    return paths


def _legacy_weights(folder: Path) -> list[Path]:
    """The files that version 0.1.0 hashed as a module's weights."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


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
        require_content([path])
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing from the model folder") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
