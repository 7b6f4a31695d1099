"""Loads the transformer of a model folder with transformers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from kosbert_ray.encoder.engines import attention
from kosbert_ray.encoder.engines.mlm_head import LogitsHead, take_head
from kosbert_ray.encoder.engines.trials import require_positions
from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.support import PROJECTION, STANFORD
from kosbert_ray.model.vector_heads import Splade

# The encoder alone of these encoder-decoders is the embedding model, as in sentence-transformers.
ENCODER_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# Weights that a checkpoint keeps for its training task, beside the encoder's.
SPARE_WEIGHTS = (
    "lm_head",
    "cls.",
    "classifier",
    "pooler",
    "decoder",
    "predictions",
    "discriminator",
    "generator",
    "qa_outputs",
    "score.",
    "position_ids",
    "inv_freq",
    "vocab_",
    "masked_bias",
    "attn.bias",
)


@dataclass(frozen=True)
class Loaded:
    """A loaded transformer.

    Attributes:
        model: the transformer, on its device.
        head: the head of a masked language model, if vectors are made of its logits.
        pluggable: whether its attention can be replaced.
        notices: messages for the user.
    """

    model: Any
    pluggable: bool
    notices: tuple[str, ...]
    head: LogitsHead | None = None


def load_transformer(spec: ModelSpec, dtype: torch.dtype, device: str, attention_name: str) -> Loaded:
    """Loads the transformer.

    Args:
        spec: the model.
        dtype: type of its weights.
        device: device to load it to.
        attention_name: attention to use where the architecture accepts it; must be registered with transformers.

    Raises:
        ModelError: it cannot be loaded, weights are missing, or it does not take texts of ``spec.max_seq_length``.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    attention.register()
    masked = isinstance(spec.sparse, Splade)
    auto = "AutoModelForMaskedLM" if masked else "AutoModel"
    kind: Any = getattr(transformers, ENCODER_CLASSES.get(spec.model_type, auto))
    load = {
        "dtype": dtype,
        "local_files_only": True,
        "output_loading_info": True,
        "trust_remote_code": spec.remote_code,
        # Without it a *.bin beside the *.safetensors could be unpickled.
        "use_safetensors": True,
    }
    if spec.model_type in ENCODER_CLASSES:
        del load["trust_remote_code"]
    try:
        model: Any = None
        info: dict[str, Any] = {}
        pluggable = False
        with contextlib.suppress(ValueError):  # raised for an architecture that does not accept the attention
            model, info = kind.from_pretrained(spec.transformer, attn_implementation=attention_name, **load)
            pluggable = bool(model._supports_attention_backend)
        if not pluggable:
            model, info = kind.from_pretrained(spec.transformer, **load)
    except Exception as error:
        raise ModelError(f"{spec.transformer}: cannot load the model ({first_line(error)})") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"{spec.transformer}: {len(missing)} weights are missing ({missing[0]}, …); is it a {spec.model_type} model?"
        )
    notices = _unused_weights(spec, info["unexpected_keys"])
    body, head = take_head(model.eval()) if masked else (model.eval(), None)
    require_positions(spec, body)
    try:
        model.to(device)  # a head without the transformer that was below it
        return Loaded(body.to(device), pluggable, notices, head)
    except torch.OutOfMemoryError as error:
        needed = sum(weight.nbytes for weight in model.parameters()) / 2**30
        raise ModelError(
            f"{spec.transformer}: its {needed:,.1f} GiB of weights do not fit into the memory of {device} "
            f"({first_line(error)}); use encoder.precision=bf16 if it is not, or a device with more memory"
        ) from error


def _unused_weights(spec: ModelSpec, unexpected: list[str]) -> tuple[str, ...]:
    """Returns a notice if the checkpoint has weights that the model does not use and no training task explains."""
    unused = sorted(name for name in unexpected if not any(part in name for part in SPARE_WEIGHTS))
    if PROJECTION in unused:
        return (
            f"{spec.transformer}: {PROJECTION} is not used; if this is a ColBERT, set "
            f'"architectures": ["{STANFORD}"] in its config.json, so that it is read as one',
        )
    if not unused:
        return ()
    return (f"{spec.transformer}: {len(unused)} weights are not part of a {spec.model_type} and not used ({unused[0]}, …)",)
