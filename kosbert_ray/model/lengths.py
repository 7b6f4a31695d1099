"""The maximum length of a text, from the configs of a model folder. Loads without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kosbert_ray.errors import UsageError
from kosbert_ray.model.files import read_object

# RoBERTa and its relatives number positions from padding_idx + 1, so that many of their embeddings are unused.
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
PADDING_INDEX = 1  # their default, which config.json may leave out
# Architectures with relative or rotary positions: no table of embeddings ends at max_position_embeddings.
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
ROTARY_KEYS = ("rope_theta", "rope_parameters", "rope_scaling", "global_rope_theta", "rotary_emb_base")
UNLIMITED = 10**6  # tokenizers without a length give 1e30
FALLBACK_LENGTH = 512
NO_LIMIT = 2**31 - 1  # of a model that takes any text: a text's number of tokens is an int32


def read_length(
    folder: Path,
    transformer: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    requested: int | None,
    notices: list[str],
) -> int:
    """Returns the maximum number of tokens in a text, special tokens included.

    Args:
        folder: the model.
        transformer: the folder of its transformer.
        config: the transformer's config.
        settings: content of sentence_bert_config.json.
        requested: the length the user asks for, if any.
        notices: takes a message if no config gives a length.

    Raises:
        UsageError: ``requested`` exceeds the model's positions.
    """
    positions = position_limit(config)
    if requested:
        if positions and requested > positions:
            raise UsageError(f"{folder}: model.max_seq_length is {requested}, but the model has {positions} positions")
        return requested
    length = settings.get("max_seq_length")
    if not length:
        path = transformer / "tokenizer_config.json"
        of_tokenizer = (read_object(path).get("model_max_length") if path.exists() else None) or UNLIMITED
        trained = text_config(config).get("max_position_embeddings") or UNLIMITED
        length = min(of_tokenizer, trained if trained > 0 else UNLIMITED, positions or UNLIMITED)
        if length >= UNLIMITED:
            length = FALLBACK_LENGTH
            notices.append(
                f"{folder} gives no maximum length; truncating texts to {length} tokens (set model.max_seq_length)"
            )
    return min(int(length), positions or UNLIMITED)


def read_static_length(tokenizer: Path, requested: int | None) -> int:
    """Returns the maximum number of tokens in a text for a static embedding model.

    Args:
        tokenizer: its tokenizer.json, whose truncation sentence-transformers applies if there is one.
        requested: the length the user asks for, if any.
    """
    stored = read_object(tokenizer).get("truncation") or {}
    return requested or int(stored.get("max_length", NO_LIMIT))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a config that describes the text encoder."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def position_limit(config: dict[str, Any]) -> int | None:
    """Returns the longest sequence that the position embeddings allow, or None if no table of embeddings limits it."""
    config = text_config(config)
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
