"""The GPU code path on a CPU, with plain implementations in place of the calls in ``cuda``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import BIDIRECTIONAL, DECODER, SLIDING, save
from conftest import TINY, everyday
from models import save_model

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.engines import cuda
from kosbert_ray.encoder.engines import torch as torch_engine
from kosbert_ray.encoder.engines.base import EngineSettings
from kosbert_ray.encoder.engines.model_info import use_default_attention
from kosbert_ray.encoder.engines.torch import TorchEngine, budget_of
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Spans, filled, random_batch
from kosbert_ray.errors import UsageError
from kosbert_ray.model.spec import read_spec

LENGTHS = [1, 2, 2, 3, 5, 5, 5, 40, 60]


def by_mask(query, key, value, offsets, longest, scaling, reach):
    """Flash attention by its formula: a token attends to those of its sequence that are within reach."""
    at = torch.arange(query.shape[0])
    sequence = torch.bucketize(at, offsets[1:], right=True)
    seen = sequence[:, None] == sequence[None, :]
    for distance, most in ((at[:, None] - at[None, :], reach[0]), (at[None, :] - at[:, None], reach[1])):
        if most >= 0:
            seen &= distance <= most
    groups = query.shape[1] // key.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling).transpose(0, 1)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "varlen_attention", by_mask)
    monkeypatch.setattr(cuda, "to_device", torch.from_numpy)


def engines(folder: str | Path, skip: int = 0) -> tuple[TorchEngine, TorchEngine]:
    """Returns an engine with the CPU's code path, and one with the GPU's."""
    spec = read_spec(Path(folder))
    plain, by_offsets = (TorchEngine(spec, EngineSettings("cpu", "fp32", torch.get_num_threads(), skip)) for _ in range(2))
    by_offsets._by_offsets = True
    return plain, by_offsets


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
@torch.inference_mode()
def test_offsets_give_what_lengths_give(kind: str, skip: int, as_on_a_gpu: None, tmp_path: Path) -> None:
    pooling = ("cls", "max", "mean", "mean_sqrt_len_tokens")
    plain, by_offsets = engines(save_model(kind, everyday(), tmp_path, pooling=pooling), skip)
    batch = random_batch(LENGTHS, plain.vocabulary)
    torch.testing.assert_close(by_offsets.pooled(batch), plain.pooled(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Qwen2", {"is_causal": False}),
        ("Qwen2", {"is_causal": True}),
        ("Mistral", {"sliding_window": 16}),
        ("Gemma3Text", SLIDING | BIDIRECTIONAL),
        ("Gemma3Text", SLIDING),
    ],
)
@torch.inference_mode()
def test_offsets_give_what_lengths_give_to_groups_of_heads(
    kind: str, config: dict[str, Any], as_on_a_gpu: None, tmp_path: Path
) -> None:
    plain, by_offsets = engines(save(tmp_path, kind, **DECODER, **config))
    assert plain.attention == "packed"
    batch = random_batch(LENGTHS, plain.vocabulary)
    torch.testing.assert_close(by_offsets.pooled(batch), plain.pooled(batch), rtol=1e-3, atol=1e-4)


def test_flash_attention_is_called_as_each_version_of_torch_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.nn.attention.varlen as varlen

    query, key = torch.zeros(3, 4, 8), torch.zeros(3, 2, 8)
    seen = {}

    def newest(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False, num_splits=None):
        seen.update(heads=k.shape[1], enable_gqa=enable_gqa, num_splits=num_splits, window_size=window_size)
        return q

    def older(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        seen.update(heads=k.shape[1], enable_gqa=False, num_splits=None, window_size=window_size)
        return q

    for function, expected in ((newest, (2, True, 1)), (older, (4, False, None))):
        monkeypatch.setattr(varlen, "varlen_attn", function)
        cuda.varlen_attention(query, key, key, torch.tensor([0, 3]), 3, None, (-1, 0))
        assert (seen["heads"], seen["enable_gqa"], seen["num_splits"]) == expected
        assert seen["window_size"] == (-1, 0)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@torch.inference_mode()
def test_spans_are_pooled_from_the_tokens_of_their_sequence(kind: str, as_on_a_gpu: None, tmp_path: Path) -> None:
    plain, by_offsets = engines(save_model(kind, everyday(), tmp_path))
    padded = TorchEngine(plain._spec, EngineSettings("cpu", "fp32", torch.get_num_threads()))
    use_default_attention(padded.model)
    padded.attention = "padded"
    batch = random_batch(LENGTHS, plain.vocabulary)
    hidden = plain._packed_states(batch)
    starts, lengths = np.array([0, 1, 63, 63, 70, 70]), np.array([1, 2, 60, 10, 20, 1])
    expected = torch.stack([hidden[first : first + n].mean(0) for first, n in zip(starts, lengths, strict=True)])
    batch = replace(batch, spans=Spans(starts, lengths))
    for engine in (plain, by_offsets, padded):
        torch.testing.assert_close(engine.pooled(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("total", [123, 124, 150, 200, 1000])
@torch.inference_mode()
def test_a_batch_that_is_filled_up_gives_the_same_vectors(
    total: int, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "COMPILED_TOKENS", total)
    plain, by_offsets = engines(TINY)
    seen = []

    def compiled(**inputs):
        seen.append(inputs["input_ids"].shape)
        return by_offsets.model(**inputs)

    by_offsets._compiled = compiled
    batch = random_batch(LENGTHS, plain.vocabulary)
    torch.testing.assert_close(by_offsets.pooled(batch), plain.pooled(batch), rtol=1e-4, atol=1e-5)
    assert seen == ([(1, total)] if sum(LENGTHS) >= total // 2 else [])
    full = filled(batch, total, 50)
    assert full.offsets[-1] == len(full.ids) == len(full.positions) == total
    assert full.positions.max() < 60 and (np.diff(full.offsets) > 0).all()


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_model_takes_batches_of_any_number_of_sequences(as_on_a_gpu: None, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "COMPILED_TOKENS", 256)
    plain, by_offsets = engines(TINY)
    by_offsets._compile()
    assert by_offsets.notices == []
    assert by_offsets._compiled is not None
    torch._dynamo.utils.counters.clear()
    for lengths in (LENGTHS, [3] * 50, [1] * 100 + [60], [120, 100]):
        batch = random_batch(lengths, plain.vocabulary)
        torch.testing.assert_close(by_offsets.pooled(batch), plain.pooled(batch), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 5  # one for each power of two of the longest


@pytest.mark.slow  # to import what compiles takes longer than all else here
def test_a_model_that_cannot_be_compiled_is_used_as_it_is(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, by_offsets = engines(TINY)

    def fail(model, **_options):
        def run(**_inputs):
            raise RuntimeError("no compiler\nand more")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    by_offsets._compile()
    assert by_offsets.notices == ["encoder.compile: the model cannot be compiled here (no compiler)"]
    with torch.inference_mode():
        batch = random_batch(LENGTHS, plain.vocabulary)
        torch.testing.assert_close(by_offsets.pooled(batch), plain.pooled(batch), rtol=1e-4, atol=1e-5)


def test_where_flash_attention_fails_attention_goes_by_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "to_device", torch.from_numpy)  # and flash attention is not for CPUs
    plain, by_offsets = engines(TINY)
    by_offsets._self_check()
    assert not by_offsets._by_offsets
    assert by_offsets.attention == "packed"
    assert by_offsets.notices[0].startswith("flash attention is not available (")
    with torch.inference_mode():
        batch = random_batch(LENGTHS, plain.vocabulary)
        assert torch.equal(by_offsets.pooled(batch), plain.pooled(batch))


def test_the_token_budget_is_what_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget_of(bytes_per_token=50_000, free=70 * 2**30, streams=2, most=65_536) == 65_536
    assert budget_of(bytes_per_token=50_000, free=2 * 2**30, streams=2, most=65_536) == 16_384
    assert budget_of(bytes_per_token=50_000, free=0, streams=2, most=65_536) == 1
    engine, _ = engines(TINY)
    engine.streams = 2
    ran = []
    monkeypatch.setattr(cuda, "memory_of", lambda run: (ran.append(run()), (8192 * 1000, 10_000_000))[1])
    assert engine.measured_budget(65_536) == 2048  # 0.8 of 10 MB in two batches, at 1,000 bytes a token
    assert ran[0].shape == (64, 128)


def test_compile_is_refused_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="compiling is supported on cuda only, and the device is cpu"):
        Encoder.load(TINY, EncoderOptions(device="cpu", compile=True))
