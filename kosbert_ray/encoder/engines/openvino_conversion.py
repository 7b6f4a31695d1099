"""Converts a transformer to OpenVINO, and checks the result against PyTorch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kosbert_ray.encoder.engines.attention import causality, reach_mask, refuse_others
from kosbert_ray.encoder.engines.base import AGREEMENT
from kosbert_ray.encoder.engines.loading import load_transformer
from kosbert_ray.encoder.engines.model_info import position_offset, use_default_attention, vocabulary_of
from kosbert_ray.encoder.engines.openvino_int8 import quantized
from kosbert_ray.encoder.engines.openvino_runtime import ACCOUNT, GRAPH, HEAD, import_openvino, infer, requests, runner
from kosbert_ray.encoder.engines.probe import agreement_of, probe
from kosbert_ray.encoder.engines.trials import needs_type_ids, require_width
from kosbert_ray.encoder.head import Head
from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.pooling import pool_block
from kosbert_ray.model.spec import ModelSpec

ATTENTION = "one_length"


class _Graph(torch.nn.Module):
    """The graph to convert: token ids ``[n, length]`` and positions ``[1, length]`` to hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns float32 ``[n, length, h]``."""
        hidden: torch.Tensor = self.model(input_ids=ids, position_ids=positions.expand_as(ids)).last_hidden_state
        return hidden


class _PooledHead(torch.nn.Module):
    """The graph behind the transformer: hidden states ``[n, length, h]`` to vectors ``[n, dimension]``."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.modes = spec.pooling
        self.head = Head(spec.head)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns float32 ``[n, dimension]``."""
        vectors: torch.Tensor = self.head(pool_block(hidden, self.modes))
        return vectors


def one_length_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over sequences of equal length, which need no padding mask.

    Args:
        module: the attention layer; its ``is_causal`` applies if the argument is None.
        query: ``[n, heads, length, head size]``.
        key, value: like ``query``, or with fewer heads, each of which serves a group of query heads.
        attention_mask: None, because transformers builds no mask for this attention.
        scaling: factor on the scores.
        sliding_window, is_causal, others: see :func:`~kosbert_ray.encoder.engines.attention.packed_attention`.

    Returns:
        ``[n, length, heads, head size]`` and no attention weights.
    """
    assert attention_mask is None
    refuse_others(others)
    causal = causality(module, is_causal)
    mask = None
    if sliding_window is not None or causal:  # always in the graph, which is traced at one length for all
        positions = torch.arange(query.shape[2], device=query.device)
        mask = reach_mask(positions, positions, sliding_window, causal)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return attended.transpose(1, 2), None


def convert(spec: ModelSpec, precision: str, folder: Path) -> None:
    """Writes the converted model and its account (vocabulary, position offset, notices) to a folder.

    Raises:
        ModelError: the model cannot be converted, or its vectors differ from PyTorch's.
    """
    from transformers import AttentionInterface

    openvino = import_openvino()
    AttentionInterface.register(ATTENTION, one_length_attention)
    loaded = load_transformer(spec, torch.float32, "cpu", ATTENTION)
    model = loaded.model
    if not loaded.pluggable:
        raise ModelError(f"{spec.folder}: {spec.model_type} has no pluggable attention; use encoder.engine=torch")
    if needs_type_ids(spec, model):
        raise ModelError(f"{spec.folder}: the model needs token_type_ids, which OpenVINO does not get; use torch")
    model.set_attn_implementation(ATTENTION)
    offset = position_offset(spec, model)
    example = {"ids": torch.ones(2, 7, dtype=torch.int64), "positions": torch.arange(7)[None] + offset}
    notices = [*loaded.notices]
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = openvino.convert_model(_Graph(model).eval(), example_input=example)
        graph.reshape({0: [-1, -1], 1: [1, -1]})
        if precision == "int8":
            graph, notice = quantized(spec, graph, offset)
            notices.append(notice)
        else:
            _require_agreement(spec, model, graph, offset)
        openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)
        openvino.save_model(_converted_head(spec, graph), folder / HEAD, compress_to_fp16=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{spec.folder}: OpenVINO cannot convert it ({first_line(error)}); use torch") from error
    account = {"vocabulary": vocabulary_of(model), "position_offset": offset, "notices": notices}
    (folder / ACCOUNT).write_text(json.dumps(account), "utf-8")


def _converted_head(spec: ModelSpec, transformer: Any) -> Any:
    """Converts pooling and head; raises ModelError if the graph's vectors differ from PyTorch's."""
    openvino = import_openvino()
    head = _PooledHead(spec).eval()
    width = transformer.output(0).partial_shape[2].get_length()
    require_width(spec, width * len(spec.pooling))
    hidden = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(head, example_input=hidden)
        graph.reshape({0: [-1, -1, width]})
        request = requests(graph, "fp32", 1).get()
        for length in (1, 5, 7):
            part = hidden[:, :length].contiguous()
            found = torch.from_numpy(infer(request, [part.numpy()]).copy())
            expected = head(part)
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                raise ModelError(f"{spec.folder}: the pooling of OpenVINO and PyTorch differ; use encoder.engine=torch")
    return graph


def _require_agreement(spec: ModelSpec, model: Any, graph: Any, offset: int) -> None:
    """Raises ModelError if the graph's vectors differ from PyTorch's."""
    batch = probe(spec, model)
    run = runner(graph, "fp32", offset)
    sequences = np.split(batch.ids, batch.offsets[1:-1])
    use_default_attention(model)  # transformers' own attention is the reference, not the converted one
    with torch.inference_mode():
        theirs = [
            model(input_ids=torch.from_numpy(ids)[None], position_ids=torch.arange(len(ids))[None] + offset)
            for ids in sequences
        ]
    one = torch.from_numpy(np.stack([run(ids).mean(0) for ids in sequences]))
    other = torch.stack([hidden.last_hidden_state[0].mean(0) for hidden in theirs])
    agreement = agreement_of(one, other, spec, "fp32")
    if agreement < AGREEMENT["fp32"]:
        raise ModelError(
            f"{spec.folder}: the vectors of OpenVINO and PyTorch differ (cosine {agreement:.6f}); use encoder.engine=torch"
        )
