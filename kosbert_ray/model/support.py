"""Refuses models whose vectors this package would compute wrongly. Loads without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import read_object

TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# sentence-transformers runs the encoder alone of these encoder-decoders; this package does so for T5's kind only.
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
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
HARMLESS_ARGUMENTS = {  # keys of ARGUMENTS that change no vector
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
# Types whose class in transformers is the code that their hub repositories name in auto_map.
NATIVE_CODE = {
    "nomic_bert": "https://github.com/huggingface/transformers/tree/main/src/transformers/models/nomic_bert",
    "gte": "https://github.com/huggingface/transformers/tree/main/src/transformers/models/gte",
    "eurobert": "https://github.com/huggingface/transformers/tree/main/src/transformers/models/eurobert",
    "jina_embeddings_v3": "https://github.com/huggingface/transformers/tree/main/src/transformers/models/jina_embeddings_v3",
}
MODEL_SETTINGS = "config_sentence_transformers.json"
STANFORD = "HF_ColBERT"  # among the architectures of a ColBERT checkpoint of Stanford's library
PROJECTION = "linear.weight"  # the tensor that makes a ColBERT of a transformer
CHAT_TEMPLATE = "chat_template.jinja"
DENSE_MODEL, SPARSE_MODEL, MULTI_VECTOR_MODEL = "SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"
TASK_OPTIONS = ("query_length", "document_length", "query_expansion")  # of token vectors
TASKS = {"feature-extraction": ("last_hidden_state", ["last_hidden_state"]), "fill-mask": ("logits", ["logits"])}


def refuse_architecture(path: Path, config: dict[str, Any]) -> None:
    """Checks the architecture.

    Args:
        path: the transformer's config.json.
        config: its content.

    Raises:
        ModelError: the architecture is not supported.
    """
    if config.get("model_type") in UNSUPPORTED_TYPES:
        raise ModelError(f"{path}: models of type {config['model_type']} are not supported")


def is_stanford(folder: Path) -> bool:
    """Returns True for a ColBERT checkpoint of Stanford's library, by its config.json."""
    path = folder / "config.json"
    return path.is_file() and STANFORD in (read_object(path).get("architectures") or ())


def plain_notice(folder: Path, config: dict[str, Any], mode: str) -> str:
    """Returns a message that a folder without modules.json is read as a dense model, which it may not be.

    Args:
        folder: the model.
        config: the content of its config.json.
        mode: how it is pooled.

    Raises:
        ModelError: it is a model of token vectors.
    """
    names = [str(name) for name in config.get("architectures") or ()]
    if STANFORD in names or any(name.endswith("ForRetrieval") for name in names):
        raise ModelError(
            f"{folder}: a {names[0]} gives token vectors, and without modules.json it would be read as a dense model; save "
            "it with sentence_transformers.MultiVectorEncoder first"
        )
    notice = f"{folder} is a plain transformers model; using {mode} pooling (set model.pooling for another)"
    if any(name.endswith("ForMaskedLM") for name in names):
        notice += (
            "; if it is a SPLADE model, these are not its vectors: save it with sentence_transformers.SparseEncoder first"
        )
    return notice


def plain_pooling(folder: Path, config: dict[str, Any]) -> str:
    """Returns the mode by which sentence-transformers pools a folder without modules.json.

    Source: ``SentenceTransformer._load_default_modules`` of version 6.

    Raises:
        ModelError: it would put texts into a chat template.
    """
    architectures = config.get("architectures") or [""]
    causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True) is not False
    if not causal:
        return "mean"
    path = folder / "tokenizer_config.json"
    if (folder / CHAT_TEMPLATE).exists() or (path.exists() and read_object(path).get("chat_template")):
        raise ModelError(
            f"{folder}: a {architectures[0]} with a chat template and without modules.json is a chat model, whose texts "
            "would be put into that template, which is not supported; set model.pooling (lasttoken or mean) to embed them "
            "as they are"
        )
    return "lasttoken"


def runs_remote_code(transformer: Path, config: dict[str, Any], allowed: bool | None, notices: list[str]) -> bool:
    """Returns True if the model's own Python code (``auto_map``) is to run.

    Args:
        transformer: the folder of the transformer.
        config: content of its config.json.
        allowed: whether the user allows the code; None if the user did not say.
        notices: takes a message if transformers' own class runs instead.

    Raises:
        ModelError: the model needs code that is not allowed.
    """
    path, kind = transformer / "config.json", str(config.get("model_type"))
    code = config.get("auto_map")
    if not code and allowed:
        tokenizer = transformer / "tokenizer_config.json"
        path, code = tokenizer, read_object(tokenizer).get("auto_map") if tokenizer.exists() else None
    # A tokenizer with code of its own has a class of transformers to fall back on.
    if not code or (not allowed and kind in NATIVE_CODE):
        return False
    if allowed is False:
        notices.append(f"{path}: its own Python code (auto_map) does not run; transformers' {kind} does")
        return False
    if not allowed:
        raise ModelError(
            f"{path}: the model has its own Python code (auto_map); review the code, and if you trust it set "
            f"model.allow_remote_code=true, or set it to false to run transformers' own {kind}, whose vectors may differ"
        )
    return True


def read_transformer_settings(transformer: Path, task: str = "feature-extraction", tokens: bool = False) -> dict[str, Any]:
    """Reads sentence_bert_config.json, or one of its older names; empty if there is none.

    Args:
        transformer: the folder of the transformer.
        task: the transformer's task, as the modules behind it need it.
        tokens: whether its token vectors are used as they are, not pooled.

    Raises:
        ModelError: a setting changes vectors and is not supported.
    """
    path = next((transformer / name for name in TRANSFORMER_CONFIGS if (transformer / name).exists()), None)
    if path is None:
        return {}
    settings: dict[str, Any] = read_object(path)
    unsupported = [name for name in TASK_OPTIONS if settings.get(name) and not tokens]
    unsupported += [name for name in ("processing_kwargs", "tokenizer_name_or_path") if settings.get(name)]
    for name in ARGUMENTS:
        unsupported += [f"{name}.{key}" for key in settings.get(name) or {} if key not in HARMLESS_ARGUMENTS]
    if settings.get("transformer_task", task) != task:
        unsupported.append(f"transformer_task {settings['transformer_task']}")
    if settings.get("module_output_name", "token_embeddings") not in (None, "token_embeddings"):
        unsupported.append(f"module_output_name {settings['module_output_name']}")
    modalities = settings.get("modality_config") or {}
    for name, value in modalities.items():
        output = value.get("method_output_name") if isinstance(value, dict) else None
        if name == "message":
            unsupported.append("modality_config.message (a chat template)")
        elif name == "text" and (value.get("method") != "forward" or output not in TASKS[task]):
            unsupported.append(f"modality_config.text {json.dumps(value)}")
    if unsupported:
        raise ModelError(f"{path}: {unsupported[0]} is not supported, and the vectors depend on it")
    return settings


def read_model_settings(folder: Path, kind: str = DENSE_MODEL) -> dict[str, Any]:
    """Reads config_sentence_transformers.json; empty if there is none.

    Args:
        folder: the model's folder.
        kind: sentence-transformers' class for its modules.

    Raises:
        ModelError: the folder holds another kind of model than an embedding model.
    """
    path = folder / MODEL_SETTINGS
    settings: dict[str, Any] = read_object(path) if path.exists() else {}
    if settings.get("model_type") not in (None, kind):
        raise ModelError(f"{path}: a {settings['model_type']} with these modules is not supported, only a {kind}")
    return settings
