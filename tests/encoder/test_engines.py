"""The table of engines: what each supports, and a further engine as one module and one entry."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import TINY

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.engines import choice, table
from kosbert_ray.encoder.engines.base import EngineSettings
from kosbert_ray.encoder.engines.choice import OPENVINO_TYPES, preferred_engine
from kosbert_ray.encoder.engines.table import ENGINES, EngineEntry, engines_for, require_supported
from kosbert_ray.encoder.options import EncoderOptions, Engine
from kosbert_ray.errors import UsageError
from kosbert_ray.model.spec import read_spec

REFUSED = [
    ("openvino", "cuda", "auto", False, "encoder.engine: openvino runs on cpu only, and the device is cuda"),
    (
        "torch",
        "auto",
        "int8",
        False,
        "encoder.precision: int8 needs encoder.engine=openvino on cpu; torch supports fp32",
    ),
    ("torch", "cpu", "fp16", False, "fp16 needs encoder.engine=torch on cuda or mps; torch on cpu supports fp32 or bf16"),
    (
        "openvino",
        "auto",
        "fp16",
        False,
        "fp16 needs encoder.engine=torch on cuda or mps; openvino supports fp32, bf16 or ",
    ),
    ("auto", "cuda", "int8", False, "int8 needs encoder.engine=openvino on cpu; cuda supports fp32, bf16 or fp16"),
    ("torch", "cpu", "auto", True, "encoder.compile: compiling is supported on cuda only, and the device is cpu"),
]


@pytest.mark.parametrize(("engine", "device", "precision", "compile", "message"), REFUSED)
def test_a_combination_that_no_engine_supports_is_refused(engine, device, precision, compile, message) -> None:
    with pytest.raises(UsageError) as refused:
        require_supported(engine, device, precision, compile)
    assert message in str(refused.value)


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_every_entry_supports_what_it_lists(engine: str) -> None:
    require_supported(engine, "auto", "auto", False)
    for device, precisions in (ENGINES[engine].precisions if engine in ENGINES else {}).items():
        for precision in precisions:
            require_supported(engine, device, precision, False)
            assert engine in engines_for(device, precision)


def test_options_accept_the_names_in_the_table() -> None:
    assert get_args(Engine) == (*ENGINES, "auto")


LIGHT = ("encoder", "encoder.options", "encoder.engines.table", "encoder.engines.base", "model.spec", "model.prepare")


@pytest.mark.parametrize("module", [*LIGHT, "encoder.tokenizer", "encoder.long_text", "run.stages"])
def test_tokenizing_and_reading_a_model_folder_need_no_engine(module: str) -> None:
    heavy = {"torch", "transformers", "openvino", "nncf"}
    code = f"import sys, kosbert_ray.{module}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


ENGINE = """
    import numpy as np

    from kosbert_ray.encoder.packing import pack

    class Lengths:
        attention, streams, vocabulary, kinds = "none", 1, 10**6, ("dense",)
        pack = staticmethod(pack)

        def __init__(self, spec, settings):
            self.width, self.notices = spec.dimension, [f"{settings.precision} on {settings.device}"]

        def vectors(self, batch, kinds):
            lengths = np.array([length for _, count, length in batch.groups for _ in range(count)], np.float32)
            return {"dense": np.repeat(lengths[:, None], self.width, axis=1)}

        def computed_tokens(self, batch):
            return len(batch.ids)

        def default_token_budget(self):
            return 7

    load = Lengths
"""


def test_another_engine_is_one_module_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_of_a_test.py").write_text(textwrap.dedent(ENGINE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "lengths", EngineEntry("engine_of_a_test", {"cpu": ("fp32", "int4")}))
    assert engines_for("cpu", "int4") == ["lengths"]
    with pytest.raises(UsageError, match="lengths runs on cpu only, and the device is cuda"):
        require_supported("lengths", "cuda", "auto", False)
    encoder = Encoder(read_spec(Path(TINY)), options("lengths"))
    assert (encoder.engine, encoder.attention, encoder.token_budget) == ("lengths", "none", 7)
    assert encoder.notices == ["fp32 on cpu"]
    vectors = encoder.encode(["가", "가 나 다", "가"])
    assert vectors.shape == (3, encoder.spec.dimension)
    assert vectors[0, 0] == vectors[2, 0] < vectors[1, 0]


def options(engine: str) -> EncoderOptions:
    """Options with an engine that was added after the options' choices were read from the table."""
    return EncoderOptions(precision="fp32", device="cpu", threads=1).model_copy(update={"engine": engine})


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "lengths", EngineEntry("none", {"cpu": ("fp32",)}, package="no_such_package", extra="x"))
    with pytest.raises(UsageError, match=r"no_such_package is not installed; pip install 'kosbert-ray\[x\]', or use torch"):
        table.load("lengths", read_spec(Path(TINY)), EngineSettings("cpu", "fp32"))


def preferred(
    monkeypatch: pytest.MonkeyPatch, *missing: str, device: str = "cpu", machine: str = "x86_64", **given: Any
) -> str:
    monkeypatch.setattr(table, "is_installed", lambda name: name not in missing)
    monkeypatch.setattr("platform.machine", lambda: machine)
    return preferred_engine(replace(read_spec(Path(TINY)), **given), EncoderOptions(), device)


def test_auto_prefers_openvino_by_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preferred(monkeypatch) == "openvino"
    assert preferred(monkeypatch, "openvino") == "torch"
    assert preferred(monkeypatch, device="cuda") == "torch"
    assert preferred(monkeypatch, machine="aarch64") == "torch"
    assert preferred(monkeypatch, model_type="made-up") == "torch"
    assert preferred(monkeypatch, remote_code=True) == "torch"
    monkeypatch.undo()
    assert preferred_engine(read_spec(Path(TINY)), EncoderOptions(precision="int8"), "cpu") == "openvino"
    assert preferred_engine(read_spec(Path(TINY)), EncoderOptions(precision="fp16"), "cpu") == "torch"
    monkeypatch.setattr(choice, "CONVERTED_BYTES", 1000)
    assert preferred_engine(read_spec(Path(TINY)), EncoderOptions(), "cpu") == "torch"  # too large to convert unasked
    assert "bert" in OPENVINO_TYPES
