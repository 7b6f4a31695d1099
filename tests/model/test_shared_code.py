"""A model whose Python code is in another repository of the hub: fetched at a commit, once allowed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import everyday
from forks import Forks
from hub import Hub

CODE = """
from transformers import BertConfig, BertModel
from .{layers} import scale

class Config(BertConfig):
    model_type = "own"

class Model(BertModel):
    config_class = Config

    def forward(self, *args, **more):
        found = super().forward(*args, **more)
        found.last_hidden_state = scale(found.last_hidden_state)
        return found
"""
LAYERS = "def scale(states):\n    return states.roll({shift}, -1)\n"
IMPORTS = """
from kosbert_ray.encoder import Encoder
import kosbert_ray.encoder.engines.torch
import transformers.models.bert.modeling_bert
"""
RUN = """
import huggingface_hub
from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.errors import ModelError
name, commits, texts, offline = values
huggingface_hub.constants.HF_HUB_OFFLINE = offline  # which is read at import
try:
    model = prepare(ModelSource(name, allow_remote_code=True, commits=commits), SpecOptions(allow_remote_code=True))
    encoder = Encoder(model.spec(), EncoderOptions(precision="fp32", device="cpu", engine="torch"))
    result = [model.described(), model.travels, model.digests.weights, encoder.encode(texts).tolist()]
except ModelError as error:
    result = str(error)
"""


class Machine:
    """A machine with a cache, where each run is a process of its own."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home = home
        env = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
        self.forks = Forks(IMPORTS, {**os.environ, **hub.env, **env})

    def run(self, name: str, commits: dict[str, str] | None = None, offline: bool = False) -> Any:
        """Describes a model, whether it travels, its hash and its vectors; or returns the error."""
        return self.forks.run(RUN, name, commits or {}, everyday()[:4], offline)

    def forget(self) -> None:
        """Empties the cache, as on another machine."""
        shutil.rmtree(self.home)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(tmp_path / "hub")
    yield served
    served.close()


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(hub, tmp_path / "home")
    yield made
    made.forks.end()


def write_code(folder: Path, shift: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling.py").write_text(CODE.format(layers="layers"))
    (folder / "layers.py").write_text(LAYERS.format(shift=shift))


@pytest.mark.parametrize(
    "local",
    [pytest.param(False, id="model on the hub"), pytest.param(True, id="model in a folder", marks=pytest.mark.slow)],
)
def test_code_is_fetched_at_a_commit_and_pinned(
    local: bool, hub: Hub, machine: Machine, tiny_model: Path, tmp_path: Path
) -> None:
    code, model = hub.folder / "someone" / "code", hub.folder / "someone" / "model"
    write_code(code, 1)
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "someone/code--modeling.Config", "AutoModel": "someone/code--modeling.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    name = str(shutil.copytree(model, tmp_path / "모델")) if local else "someone/model"

    described, travels, weights, vectors = machine.run(name)
    commit = hub.commit("someone/code")
    assert described["commits"] == {"someone/code": commit} and travels
    assert vectors != machine.run(str(tiny_model))[3]
    # The code moves on: the recorded commit is the same model, and the newest another.
    hub.earlier[commit] = Path(shutil.copytree(code, tmp_path / "earlier"))
    write_code(code, 2)
    machine.forget()
    assert machine.run(name, {"someone/code": commit})[2:] == [weights, vectors]
    newest = machine.run(name)
    assert newest[2] != weights and newest[3] != vectors
    assert machine.run(name, {"someone/code": commit}, offline=True)[2:] == [weights, vectors]
    if local:
        # Two files of one name and other content.
        (Path(name) / "layers.py").write_text("x = 1\n")
        assert machine.run(name).startswith("layers.py: the model has another file of this name than")


def test_code_that_is_not_on_the_hub_is_named(hub: Hub, machine: Machine, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, hub.folder / "someone" / "model"))
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "someone/code--modeling.Config", "AutoModel": "someone/code--modeling.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    assert "someone/code: the hub has no such model" in machine.run(str(model))
