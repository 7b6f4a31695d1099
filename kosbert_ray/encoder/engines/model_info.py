"""Facts about a loaded transformers model."""

from __future__ import annotations

from typing import Any

from kosbert_ray.model.lengths import OFFSET_POSITIONS, PADDING_INDEX
from kosbert_ray.model.spec import ModelSpec


def text_config(model: Any) -> Any:
    """Returns the part of a model's config that describes its text encoder."""
    return model.config.get_text_config()


def vocabulary_of(model: Any) -> int:
    """Returns the number of token ids that a model has embeddings for."""
    return int(getattr(text_config(model), "vocab_size", None) or model.get_input_embeddings().num_embeddings)


def position_offset(spec: ModelSpec, model: Any) -> int:
    """Returns the number of the first position, which is not 0 for RoBERTa and its relatives."""
    if spec.model_type not in OFFSET_POSITIONS:
        return 0
    padding = model.config.pad_token_id
    return (PADDING_INDEX if padding is None else int(padding)) + 1


def use_default_attention(model: Any) -> None:
    """Switches a model to the attention that transformers picks by default."""
    model.set_attn_implementation(model.get_correct_attn_implementation(None))
