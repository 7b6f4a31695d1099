"""Facts about a model that only a forward pass reveals: the inputs it needs and the positions it has."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import nn

from kosbert_ray.encoder.engines import attention
from kosbert_ray.encoder.engines.model_info import use_default_attention, vocabulary_of
from kosbert_ray.encoder.packing import random_batch
from kosbert_ray.encoder.tokenizer import transformers_tokenizer
from kosbert_ray.errors import ModelError
from kosbert_ray.model.spec import Dense, ModelSpec, Truncate

LONGEST_TRIAL = 8192  # tokens
# Parts of torch's messages for an index or a slice beyond a table of embeddings.
BEYOND_A_TABLE = ("size of tensor", "out of bounds", "out of range")


@torch.inference_mode()
def needs_type_ids(spec: ModelSpec, model: Any) -> bool:
    """Returns True if the model needs ``token_type_ids`` of 0: its tokenizer produces them and they change its vectors.

    Most models treat missing ids as zeros. Some (GPT-2, XLM) add the embedding of token 0 for them, so their vectors in
    sentence-transformers, which passes on what the tokenizer returns, differ from those without ids.
    """
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    before = model.config._attn_implementation
    ids = torch.from_numpy(random_batch([min(7, spec.max_seq_length)], vocabulary_of(model)).ids)[None].to(model.device)
    with contextlib.suppress(Exception):  # the self-check reports a model that fails
        if before == attention.NAME:
            use_default_attention(model)
        plain, zeros = (
            model(input_ids=ids, **more).last_hidden_state for more in ({}, {"token_type_ids": torch.zeros_like(ids)})
        )
        if not torch.allclose(plain, zeros, rtol=1e-2, atol=1e-3):
            return "token_type_ids" in transformers_tokenizer(spec).model_input_names
    return False


class _Enough(Exception):
    """Stops a forward pass behind the embeddings."""


@torch.inference_mode()
def require_positions(spec: ModelSpec, model: Any) -> None:
    """Checks that the embeddings take a text of ``spec.max_seq_length`` tokens.

    Runs the model on the CPU up to its first layer behind the embeddings. On a GPU a position beyond the table would kill
    the process; without this check every long text would be rejected.

    Raises:
        ModelError: the embeddings take fewer tokens; the message says how many.
    """
    from transformers.pytorch_utils import Conv1D

    def stop(*_: object) -> None:
        raise _Enough

    def takes(length: int) -> bool:
        try:
            model(input_ids=torch.full((1, length), token))
        except IndexError:
            return False
        except RuntimeError as error:  # a table that is sliced or gathered from
            return not any(mark in str(error) for mark in BEYOND_A_TABLE)
        except Exception:  # _Enough, or a failure that the self-check reports
            return True
        return True

    token = vocabulary_of(model) // 2
    most = min(spec.max_seq_length, LONGEST_TRIAL)
    hooks = [module.register_forward_pre_hook(stop) for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    try:
        if takes(most) or not takes(1):
            return
        fit, beyond = 1, most
        while beyond - fit > 1:
            middle = (fit + beyond) // 2
            fit, beyond = (middle, beyond) if takes(middle) else (fit, middle)
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError(
        f"{spec.folder}: its position embeddings take {fit} tokens, not {spec.max_seq_length}; set "
        f"model.max_seq_length={fit}"
    )


def require_width(spec: ModelSpec, width: int) -> None:
    """Raises ModelError if the pooled vectors are not as wide as the modules behind pooling expect.

    Args:
        spec: the model.
        width: the length of a pooled vector.
    """
    first = next((part for part in spec.head if isinstance(part, Dense | Truncate)), None)
    expected = first.in_features if isinstance(first, Dense) else spec.dimension
    if width < expected or (width > expected and not isinstance(first, Truncate)):
        raise ModelError(
            f"{spec.folder}: the transformer's vectors have {width} numbers instead of {expected} (see the config.json of "
            "its pooling)"
        )
