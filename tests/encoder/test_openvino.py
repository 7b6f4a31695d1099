"""OpenVINO gives PyTorch's vectors, converts a model once, and reports the loss of int8."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import everyday
from models import ARCHITECTURES, save_model

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.errors import UsageError
from kosbert_ray.model.options import SpecOptions

MINI = "bundled:kosbert-mini"
TEXTS = [*everyday()[:60], " ".join(everyday()[:30])]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kosbert-ray"


FAST = ("bert", "modernbert")  # the others run with the slow tests


def options(precision: str, engine: str = "openvino", threads: int = 1) -> EncoderOptions:
    return EncoderOptions(precision=precision, device="cpu", threads=threads, engine=engine)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in ARCHITECTURES]
)
def test_each_architecture_gives_the_vectors_of_pytorch(kind: str, tmp_path: Path) -> None:
    folder = save_model(kind, everyday(), tmp_path / "model")
    exact = Encoder.load(str(folder), options("fp32", "torch")).encode(TEXTS)
    encoder = Encoder.load(str(folder), options("fp32"))
    assert (encoder.engine, encoder.attention) == ("openvino", "one_length")
    np.testing.assert_allclose(encoder.encode(TEXTS), exact, atol=1e-4)
    assert cosines(Encoder.load(str(folder), options("bf16")).encode(TEXTS), exact).min() > 0.999


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_pooling_and_a_prompt_that_is_left_out_are_as_pytorchs(pooling: str, tmp_path: Path) -> None:
    folder = save_model("bert", everyday(), tmp_path / "model", pooling=pooling, include_prompt=False)
    ask = SpecOptions(prompt="질문: ")
    exact = Encoder.load(str(folder), options("fp32", "torch"), ask).encode(TEXTS)
    np.testing.assert_allclose(Encoder.load(str(folder), options("fp32"), ask).encode(TEXTS), exact, atol=1e-4)


def test_it_converts_once_and_the_number_of_streams_changes_nothing(cache: Path) -> None:
    one = Encoder.load(MINI, options("fp32")).encode(TEXTS)
    (folder,) = (cache / "openvino").iterdir()
    made = (folder / "model.xml").stat().st_mtime_ns
    two = Encoder.load(MINI, options("fp32", threads=3)).encode(TEXTS)
    np.testing.assert_array_equal(one, two)
    assert (folder / "model.xml").stat().st_mtime_ns == made
    assert [path.name for path in (cache / "openvino").iterdir()] == [folder.name]


def test_int8_reports_its_cosine_to_float32(capfd: pytest.CaptureFixture[str]) -> None:
    encoder = Encoder.load(MINI, options("int8"))
    assert encoder.precision == "int8"
    assert encoder.notices[-1].startswith("int8: cosine to float32 0.99")
    assert Encoder.load(MINI, options("int8")).notices == encoder.notices
    assert cosines(encoder.encode(TEXTS), Encoder.load(MINI, options("fp32", "torch")).encode(TEXTS)).min() > 0.99
    assert not capfd.readouterr().out


def test_streams_do_not_change_a_byte(cache: Path) -> None:
    one = Encoder.load(MINI, options("fp32", threads=1))
    several = Encoder.load(MINI, options("fp32", threads=3))
    for _ in range(3):
        np.testing.assert_array_equal(one.encode(TEXTS), several.encode(TEXTS))


def test_a_text_of_one_token_that_comes_first_does_not_change_the_others() -> None:
    lengths = np.array([1, 12, 21, 5], np.int32)
    ids = np.random.default_rng(0).integers(100, 8000, int(lengths.sum())).astype(np.int32)
    tokens = Tokens(ids, lengths, np.arange(4, dtype=np.int32), np.zeros(4, np.int32))
    exact = Encoder.load(MINI, options("fp32", "torch")).encode_tokens(tokens).vectors
    for threads in (1, 2):
        found = Encoder.load(MINI, options("fp32", threads=threads)).encode_tokens(tokens).vectors
        np.testing.assert_allclose(found, exact, atol=1e-4)


@pytest.mark.slow
def test_a_job_runs_on_it_and_is_verified_by_pytorch(cli, cache: Path, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(cache.parent)}
    engine = ["--set", "encoder.engine=openvino"]
    done = cli("embed", "bundled:everyday", tmp_path / "out", "--model", MINI, "--keep", "text", *engine, env=env)
    assert "520 rows in" in done.stdout
    verified = cli("verify", tmp_path / "out", "--sample", "100", env=env).stdout
    agreement = re.search(r"100 rows embedded again, cosine at least ([\d.]+);", verified)
    assert agreement
    assert float(agreement[1]) >= 0.99
    int8 = [*engine, "--set", "encoder.precision=int8"]
    done = cli("embed", "bundled:everyday", tmp_path / "int8", "--model", MINI, "--keep", "text", *int8, env=env)
    assert "int8: cosine to float32 0.99" in done.stderr


def test_where_it_is_not_installed_auto_is_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "is_installed", lambda name: name != "openvino")
    assert Encoder.load(MINI, options("fp32", "auto")).engine == "torch"
    with pytest.raises(UsageError, match="openvino is not installed"):
        Encoder.load(MINI, options("fp32"))


def test_int8_is_not_pytorchs() -> None:
    with pytest.raises(UsageError, match=r"int8 needs encoder\.engine=openvino"):
        Encoder.load(MINI, options("int8", "torch"))
