"""int8 for OpenVINO: post-training quantization (nncf), calibrated on the bundled sentences."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

import numpy as np

from kosbert_ray.encoder.engines.openvino_runtime import import_openvino, runner
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import ModelError
from kosbert_ray.model.source import bundled_sentences
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.vectors.arithmetic import unit

MIN_AGREEMENT = 0.95  # mean cosine to float32
CALIBRATION_TEXTS = 300
JOINED = 12  # sentences in every sixth calibration text: long texts have other activations
# Every third text ends like user comments do: runs of one token have activations like nothing else.
TAILS = (".", "!", "?", "~", ",", "ㅋ", "ㅠ", "ㅎ", ";", "^", "1", "a", "ㅡ", "♥", "=")
TAIL_LENGTHS = (3, 8, 20)


def quantized(spec: ModelSpec, graph: Any, offset: int) -> tuple[Any, str]:
    """Quantizes a graph, and measures the loss on a quarter of the calibration texts that is held out.

    Args:
        spec: the model.
        graph: the float32 graph.
        offset: number of the first position.

    Returns:
        The quantized graph, and a notice with its cosine to float32.

    Raises:
        ModelError: the mean cosine is below ``MIN_AGREEMENT``.
    """
    import_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    tokens = Tokenizer.load(spec)(calibration_texts())
    sequences = [ids.astype(np.int64) for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1]) if len(ids)]
    held_out, sample = sequences[::4], [ids for number, ids in enumerate(sequences) if number % 4]
    exact = runner(graph, "fp32", offset)
    expected = [exact(ids).mean(0) for ids in held_out]
    inputs = [{"ids": ids[None], "positions": np.arange(len(ids))[None] + offset} for ids in sample]
    with contextlib.redirect_stdout(io.StringIO()):  # nncf prints progress bars
        smaller = nncf.quantize(graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))
    run = runner(smaller, "int8", offset)
    found = np.stack([run(ids).mean(0) for ids in held_out])
    cosines = (unit(found) * unit(np.stack(expected))).sum(1)
    mean, least = float(cosines.mean()), float(cosines.min())
    if mean < MIN_AGREEMENT:
        raise ModelError(
            f"{spec.folder}: int8 reaches a mean cosine of only {mean:.4f} to float32; use another encoder.precision"
        )
    return smaller, f"int8: cosine to float32 {mean:.4f} on average, {least:.4f} at least, on {len(held_out)} texts"


def calibration_texts() -> list[str]:
    """Returns single sentences, joined sentences, and sentences with a run of one character at the end."""
    sentences = bundled_sentences()
    texts = []
    for number in range(CALIBRATION_TEXTS):
        text = " ".join(sentences[number : number + (JOINED if number % 6 == 5 else 1)])
        if number % 3 == 0:
            turn = number // 3
            text += TAILS[turn % len(TAILS)] * TAIL_LENGTHS[turn // len(TAILS) % len(TAIL_LENGTHS)]
        texts.append(text)
    return texts
