"""Every text that can be embedded is embedded, whatever its neighbours do, and attempts are bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import everyday
from hypothesis import given
from hypothesis import strategies as st
from models import BEYOND, UNKNOWN, save_fragile
from sequences import tokens

from kosbert_ray.encoder.bisection import encode_all
from kosbert_ray.encoder.collected import DenseRows
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Batch, Pack, pack, pack_one_length
from kosbert_ray.errors import DeviceBroken, ModelError
from kosbert_ray.model.options import SpecOptions

lengths = st.lists(st.integers(0, 30), max_size=40)
some = st.sets(st.integers(0, 39))


@given(lengths, some, some, st.integers(1, 60), st.integers(1, 100), st.sampled_from([(pack, 1), (pack_one_length, 3)]))
def test_exactly_the_texts_that_fail_alone_are_named_and_all_others_get_their_vector(
    lengths: list[int], raising: set[int], nan: set[int], memory: int, budget: int, way: tuple[Pack, int]
) -> None:
    calls = 0

    def forward(batch: Batch) -> np.ndarray:
        nonlocal calls
        calls += 1
        texts = batch.texts.tolist()
        if len(batch.ids) > memory:
            raise torch.OutOfMemoryError("too much")
        if raising & set(texts):
            raise ValueError("not this one")
        found = np.array([[text, len(texts)] for text in texts], np.float32)
        if nan & set(texts):  # it spoils its neighbours too
            found[:] = np.nan
        return found

    rows = DenseRows(len(lengths), 2)
    failed, left = encode_all(tokens(lengths), {}, budget, forward, rows, *way)
    hopeless = {text for text, length in enumerate(lengths) if length > memory or length == 0 or text in raising | nan}
    assert failed.keys() == hopeless
    assert [int(rows.vectors[text, 0]) for text in range(len(lengths)) if text not in hopeless] == [
        text for text in range(len(lengths)) if text not in hopeless
    ]
    assert left <= budget
    assert calls <= 60 * max(1, len(lengths))


def test_a_lost_device_is_no_texts_fault() -> None:
    def forward(batch: Batch) -> np.ndarray:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    with pytest.raises(DeviceBroken):
        encode_all(tokens([3, 4]), {}, 100, forward, DenseRows(2, 2))


OUT_OF_MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
common = {"precision": "fp32", "device": "cpu", "threads": 1, "engine": sys.argv[2]}
options = EncoderOptions(**common, token_budget=2_000_000)
encoder = Encoder.load(sys.argv[1], options)
texts = [f"{number} 번째 문장은 조금 길게 적어 둔다 그래야 기억이 모자란다" for number in range(20_000)]
expected = Encoder.load(sys.argv[1], EncoderOptions(**common)).encode(texts)
tokens = encoder.tokenizer(texts)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
encoded = encoder.encode_tokens(tokens)
assert not encoded.failed, next(iter(encoded.failed.items()))
assert np.allclose(encoded.vectors, expected, atol=1e-4)
print(encoder.token_budget, encoder.notices)
"""


@pytest.mark.faults
def test_openvino_out_of_memory_gives_no_vectors_instead_of_earlier_ones(tiny_model: Path) -> None:
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(tiny_model), "openvino"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "DeviceBroken: OpenVINO ran out of memory" in done.stderr.splitlines()[-1]


@pytest.mark.faults
def test_a_machine_out_of_memory_halves_the_token_budget_and_goes_on(tiny_model: Path) -> None:
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(tiny_model), "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory: batches of " in done.stdout
    assert int(done.stdout.split()[0]) < 2_000_000


def test_a_real_model_loses_only_the_texts_it_fails_on(tiny_model: Path, tmp_path: Path) -> None:
    words = save_fragile(tiny_model, tmp_path / "model", most_tokens=300)
    encoder = Encoder.load(
        str(tmp_path / "model"), EncoderOptions(precision="fp32", device="cpu"), SpecOptions(allow_remote_code=True)
    )
    fine = [text for text in everyday() if not any(word in text for word in words.values())][:60]
    bad = [words["raises"], words["nan"], f"{UNKNOWN} 글자", f"{BEYOND} 심은 데", words["raises"]]
    texts = [*fine[:30], *bad, *fine[30:]]
    encoded = encoder.encode_tokens(encoder.tokenizer(texts))
    assert sorted(encoded.failed) == [30, 31, 32, 33, 34]
    assert [encoded.failed[row].split(" (")[0] for row in range(30, 34)] == [
        "the model fails on it",
        "its vector holds NaN or Inf",
        "the tokenizer fails on it",
        f"token {encoder._engine.vocabulary} is beyond the model's {encoder._engine.vocabulary}",
    ]
    assert "this one I cannot read" in encoded.failed[34]
    assert any("out of memory: batches of" in notice for notice in encoder.notices)
    expected = Encoder.load(str(tiny_model), EncoderOptions(precision="fp32", device="cpu")).encode(fine)
    np.testing.assert_allclose(np.delete(encoded.vectors, range(30, 35), axis=0), expected, atol=1e-5)
    with pytest.raises(ModelError, match="text 30: the model fails on it"):
        encoder.encode(texts)
