"""A model whose Python code is in another repository of the hub: fetched at a commit, once allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import everyday
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
RUN = """
import json, sys
from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.errors import ModelError
name, commits, *texts = json.loads(sys.argv[1])
options = SpecOptions(allow_remote_code=True)
try:
    model = prepare(ModelSource(name, allow_remote_code=True, commits=commits), options)
    encoder = Encoder(model.spec(), EncoderOptions(precision="fp32", device="cpu", engine="torch"))
    print(json.dumps([model.described(), model.travels, model.digests.weights, encoder.encode(texts).tolist()]))
except ModelError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(tmp_path / "hub")
    yield served
    served.close()


def run(hub: Hub, home: Path, name: str, commits: dict[str, str] | None = None, **more: str) -> Any:
    env = {**os.environ, **hub.env, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), **more}
    arguments = json.dumps([name, commits or {}, *everyday()[:4]])
    done = subprocess.run([sys.executable, "-c", RUN, arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_code(folder: Path, shift: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling.py").write_text(CODE.format(layers="layers"))
    (folder / "layers.py").write_text(LAYERS.format(shift=shift))


@pytest.mark.parametrize("local", [False, True], ids=["model on the hub", "model in a folder"])
def test_code_is_fetched_at_a_commit_and_pinned(local: bool, hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    code, model = hub.folder / "someone" / "code", hub.folder / "someone" / "model"
    write_code(code, 1)
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "someone/code--modeling.Config", "AutoModel": "someone/code--modeling.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    name = str(shutil.copytree(model, tmp_path / "모델")) if local else "someone/model"

    described, travels, weights, vectors = run(hub, tmp_path, name)
    commit = hub.commit("someone/code")
    assert described["commits"] == {"someone/code": commit} and travels
    assert vectors != run(hub, tmp_path, str(tiny_model))[3]
    # The code moves on: the recorded commit is the same model, and the newest another.
    hub.earlier[commit] = Path(shutil.copytree(code, tmp_path / "earlier"))
    write_code(code, 2)
    assert run(hub, tmp_path / "elsewhere", name, {"someone/code": commit})[2:] == [weights, vectors]
    newest = run(hub, tmp_path, name)
    assert newest[2] != weights and newest[3] != vectors
    assert run(hub, tmp_path, name, {"someone/code": commit}, HF_HUB_OFFLINE="1")[2:] == [weights, vectors]
    # Two files of one name and other content.
    if local:
        (Path(name) / "layers.py").write_text("x = 1\n")
        assert run(hub, tmp_path, name).startswith("layers.py: the model has another file of this name than")
        shutil.rmtree(code)
        assert "someone/code: the hub has no such model" in run(hub, tmp_path / "third", name)
