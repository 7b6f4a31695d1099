"""OpenVINO: the CPU's second engine. The model is converted once, on the machine that runs it, and kept in the cache.

Sequences of one length go through as one matrix, so there is neither padding nor mask. ``int8`` is OpenVINO's
post-training quantization (nncf) on the bundled sentences; what it costs is measured at once and told.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import queue
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kosbert_ray.encoder.engines.attention import causality, refuse_others
from kosbert_ray.encoder.engines.torch import (
    AGREEMENT,
    agreement_of,
    load_transformer,
    needs_type_ids,
    position_offset,
    probe,
    use_default_attention,
    vocabulary_of,
)
from kosbert_ray.encoder.packing import Batch, pack_one_length
from kosbert_ray.encoder.pooling import pool
from kosbert_ray.encoder.source import bundled_sentences, cache_folder, filled_once
from kosbert_ray.encoder.spec import ModelSpec, sha256
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import ModelError, UsageError, first_line

ATTENTION = "one_length"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
INT8_AGREEMENT = 0.95
CALIBRATION_TEXTS = 300
JOINED = 12  # every sixth calibration text is so many sentences: long texts have other activations
# Every third ends as people's comments do: runs of one token have activations like nothing else.
TAILS = (".", "!", "?", "~", ",", "ㅋ", "ㅠ", "ㅎ", ";", "^", "1", "a", "ㅡ", "♥", "=")
TAIL_LENGTHS = (3, 8, 20)
GRAPH, ACCOUNT = "model.xml", "account.json"


class OpenVinoEngine:
    """A converted transformer.

    Args:
        spec: the model.
        precision: "fp32", "bf16" or "int8".
        streams: batches at the same time, a thread each.
        skip: leading tokens to leave out of pooling.

    Raises:
        UsageError: OpenVINO is not installed.
        ModelError: the model cannot be converted, or gives other vectors than PyTorch.
    """

    attention = "one_length"
    pack = staticmethod(pack_one_length)

    def __init__(self, spec: ModelSpec, precision: str, streams: int, skip: int) -> None:
        self._spec, self._skip = spec, skip
        self.streams = streams
        folder = converted(spec, precision)
        account = json.loads((folder / ACCOUNT).read_text("utf-8"))
        self.vocabulary = int(account["vocabulary"])
        self.notices: list[str] = [account["notice"]] if account["notice"] else []
        self._position_offset = int(account["position_offset"])
        self._requests = _requests(str(folder / GRAPH), precision, streams)

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Pooled vectors of a batch's sequences: float32 ``[sequences, h * pooling modes]``; from ``streams`` threads."""
        request = self._requests.get()
        try:
            return torch.cat([self._group(request, batch, *group) for group in batch.groups])
        finally:
            self._requests.put(request)

    def computed_tokens(self, batch: Batch) -> int:
        """Tokens of a batch: nothing is padded."""
        return len(batch.ids)

    def _group(self, request: Any, batch: Batch, start: int, count: int, length: int) -> torch.Tensor:
        ids = batch.ids[start : start + count * length].reshape(count, length)
        positions = np.arange(length, dtype=np.int64)[None] + self._position_offset
        request.infer([ids, positions], share_inputs=True)
        hidden = torch.from_numpy(request.get_output_tensor(0).data).view(count * length, -1)
        return pool(hidden, ((0, count, length),), self._spec.pooling, self._skip)


def _openvino() -> Any:
    """OpenVINO, without its reports to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _requests(graph: str | Any, precision: str, streams: int) -> queue.SimpleQueue[Any]:
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = _openvino().Core().compile_model(graph, "CPU", settings)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())
    return requests


def available() -> bool:
    """Whether OpenVINO is installed."""
    try:
        version("openvino")
    except PackageNotFoundError:
        return False
    return True


# -- conversion ----------------------------------------------------------------------------------------------------


def converted(spec: ModelSpec, precision: str) -> Path:
    """The folder of the converted model, made first if it is not in the cache; raises as the engine does."""
    if not available():
        raise UsageError("encoder.engine: OpenVINO is not installed here (pip install 'kosbert-ray[cpu]'); or use torch")
    parts = [sha256(spec.folder, spec.weight_files), version("openvino"), version("transformers"), version("torch")]
    if precision == "int8":
        parts += [version("nncf"), *_calibration_texts()]
    key = hashlib.sha256("\n".join([*parts, "int8" if precision == "int8" else "float"]).encode()).hexdigest()[:16]
    folder = cache_folder("openvino") / key
    if (folder / ACCOUNT).exists():
        return folder
    try:
        with filled_once(folder) as partial:
            _convert(spec, precision, partial)
    except OSError as error:
        raise ModelError(f"{folder}: the converted model cannot be kept there ({first_line(error)})") from error
    return folder


class _Graph(torch.nn.Module):
    """What is converted: token ids ``[n, length]`` and positions ``[1, length]`` to hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """float32 ``[n, length, h]``."""
        hidden: torch.Tensor = self.model(input_ids=ids, position_ids=positions.expand_as(ids)).last_hidden_state
        return hidden


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
    """Every token attends to all others of its sequence, or to those less than ``sliding_window`` away.

    Args:
        module: the attention layer; its ``is_causal`` counts where the call says nothing.
        query: ``[n, heads, length, head size]``.
        key, value: the same, or of fewer heads, each of which serves a group of the query's.
        attention_mask: None, as no mask is built.
        scaling: factor on the scores.
        sliding_window, is_causal, others: as in :func:`~kosbert_ray.encoder.engines.attention.packed_attention`.

    Returns:
        ``[n, length, heads, head size]`` and no attention weights.
    """
    assert attention_mask is None
    refuse_others(others)
    causal = causality(module, is_causal)
    mask = None
    if sliding_window is not None or causal:
        places = torch.arange(query.shape[2], device=query.device)
        distance = places[:, None] - places[None, :]
        mask = distance.abs() < sliding_window if sliding_window is not None else distance >= 0
        if causal and sliding_window is not None:
            mask = mask & (distance >= 0)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return attended.transpose(1, 2), None


def _convert(spec: ModelSpec, precision: str, folder: Path) -> None:
    from transformers import AttentionInterface

    openvino = _openvino()
    AttentionInterface.register(ATTENTION, one_length_attention)
    loaded = load_transformer(spec, torch.float32, "cpu", ATTENTION)
    model = loaded.model
    if not loaded.pluggable:
        raise ModelError(f"{spec.folder}: {spec.model_type} has no pluggable attention; use encoder.engine=torch")
    if needs_type_ids(spec, model):
        raise ModelError(f"{spec.folder}: the model takes token_type_ids, which OpenVINO is not given; use torch")
    model.set_attn_implementation(ATTENTION)
    offset = position_offset(spec, model)
    example = {"ids": torch.ones(2, 7, dtype=torch.int64), "positions": torch.arange(7)[None] + offset}
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = openvino.convert_model(_Graph(model).eval(), example_input=example)
        graph.reshape({0: [-1, -1], 1: [1, -1]})
        notice = _quantize(spec, graph, offset, folder) if precision == "int8" else None
        if notice is None:
            _require_agreement(spec, model, graph, offset)
            openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{spec.folder}: OpenVINO cannot convert it ({first_line(error)}); use torch") from error
    account = {"vocabulary": vocabulary_of(model), "position_offset": offset, "notice": notice}
    (folder / ACCOUNT).write_text(json.dumps(account), "utf-8")


def _runner(graph: Any, precision: str, offset: int) -> Callable[[npt.NDArray[np.int64]], torch.Tensor]:
    """Hidden states, float32 ``[length, h]``, of one sequence."""
    request = _requests(graph, precision, 1).get()

    def run(ids: npt.NDArray[np.int64]) -> torch.Tensor:
        request.infer([ids[None], np.arange(len(ids))[None] + offset])
        return torch.from_numpy(request.get_output_tensor(0).data[0].copy())

    return run


def _require_agreement(spec: ModelSpec, model: Any, graph: Any, offset: int) -> None:
    batch = probe(spec, model)
    run = _runner(graph, "fp32", offset)
    sequences = np.split(batch.ids, batch.offsets[1:-1])
    use_default_attention(model)  # not the attention that was converted: the graph is to give what transformers gives
    with torch.inference_mode():
        theirs = [
            model(input_ids=torch.from_numpy(ids)[None], position_ids=torch.arange(len(ids))[None] + offset)
            for ids in sequences
        ]
    one = torch.stack([run(ids).mean(0) for ids in sequences])
    other = torch.stack([hidden.last_hidden_state[0].mean(0) for hidden in theirs])
    agreement = agreement_of(one, other, spec, "fp32")
    if agreement < AGREEMENT["fp32"]:
        raise ModelError(f"{spec.folder}: OpenVINO and PyTorch agree to a cosine of {agreement:.6f} only; use torch")


def _quantize(spec: ModelSpec, graph: Any, offset: int, folder: Path) -> str:
    """Saves the graph in int8; says how near its vectors come to those of float32."""
    openvino = _openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    tokens = Tokenizer.load(spec)(_calibration_texts())
    sequences = [ids.astype(np.int64) for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1]) if len(ids)]
    held_out, sample = sequences[::4], [ids for number, ids in enumerate(sequences) if number % 4]
    exact = _runner(graph, "fp32", offset)
    expected = [exact(ids).mean(0) for ids in held_out]
    inputs = [{"ids": ids[None], "positions": np.arange(len(ids))[None] + offset} for ids in sample]
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        quantized = nncf.quantize(
            graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
        )
    run = _runner(quantized, "int8", offset)
    cosines = torch.cosine_similarity(torch.stack([run(ids).mean(0) for ids in held_out]), torch.stack(expected))
    mean, least = float(cosines.mean()), float(cosines.min())
    if mean < INT8_AGREEMENT:
        raise ModelError(f"{spec.folder}: int8 comes to a cosine of {mean:.4f} with float32 only; use another precision")
    openvino.save_model(quantized, folder / GRAPH, compress_to_fp16=False)
    return f"int8: cosine to float32 {mean:.4f} on average, {least:.4f} at least, on {len(held_out)} texts"


def _calibration_texts() -> list[str]:
    sentences = bundled_sentences()
    texts = []
    for number in range(CALIBRATION_TEXTS):
        text = " ".join(sentences[number : number + (JOINED if number % 6 == 5 else 1)])
        if number % 3 == 0:
            turn = number // 3
            text += TAILS[turn % len(TAILS)] * TAIL_LENGTHS[turn // len(TAILS) % len(TAIL_LENGTHS)]
        texts.append(text)
    return texts


# -- which engine is faster ----------------------------------------------------------------------------------------


def faster(spec: ModelSpec, precision: str, threads: int, measure: Callable[[str], float]) -> str:
    """The faster engine for a model on this machine: measured once, then remembered.

    Args:
        spec: the model.
        precision: of both.
        threads: of both.
        measure: seconds an engine takes for the same work.
    """
    cpu = platform.processor() or platform.machine()
    parts = [sha256(spec.folder, spec.weight_files), version("openvino"), version("torch"), precision, str(threads), cpu]
    memory = cache_folder("engines") / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.txt"
    if not memory.exists():
        seconds = {engine: measure(engine) for engine in ("torch", "openvino")}
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
        partial.write_text(min(seconds, key=lambda engine: seconds[engine]))
        try:
            os.link(partial, memory)  # the first to measure decides for all
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return memory.read_text()
