"""A run uses one fixed copy of a model; other machines load the same files or fail; an output refuses another model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from hub import Hub
from models import pickle_weights
from safetensors.torch import load_file, save_file

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prepare import PreparedModel, prepare
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec
from kosbert_ray.storage import Storage

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
# What version 0.1.0 wrote into job.json for the bundled model.
MINI = (
    "4ddf67dc948bc6b0dcc8c44841ef9984790ae0c54021f64ed2aa766a00281dd5",
    "f81a15213f877c0574b385efea1efb6b1dd108a832b28bff11ad338656a9575b",
)

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def of(folder: Path) -> PreparedModel:
    return prepare(ModelSource(str(folder)))


def elsewhere(model: PreparedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PreparedModel:
    """The model as a process on another machine sees it, with its own disk and cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    travelled: PreparedModel = pickle.loads(pickle.dumps(model))
    return replace(travelled, host="driver", folder=Path("/not/here"), origin=Path("/not/here"))


def spoil(folder: Path) -> None:
    """Replaces a model's files by another model's."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_that_is_replaced_does_not_change_the_run(folder: Path, own_cache: Path) -> None:
    expected = Encoder.load(str(folder), FP32).encode(everyday()[:9])
    model = of(folder).kept()
    (copy,) = own_cache.iterdir()
    assert model.folder == copy and model.digest == model.digests.all
    assert model.digests.weights == sha256(folder, read_spec(folder).weight_files)
    made = (copy / "model.safetensors").stat().st_mtime_ns
    assert of(folder).kept() == model and (copy / "model.safetensors").stat().st_mtime_ns == made
    spoil(folder)
    np.testing.assert_array_equal(Encoder(model.spec(), FP32).encode(everyday()[:9]), expected)
    assert of(folder).kept().folder != copy
    assert not list(own_cache.glob("partial-*"))


def test_a_folder_that_changes_before_it_is_copied_is_told(folder: Path, own_cache: Path) -> None:
    model = of(folder)
    spoil(folder)
    with pytest.raises(ModelError, match="changed while it was copied; run the same command again"):
        model.kept()
    assert not list(own_cache.iterdir())


def test_what_never_changes_is_used_as_it_is(own_cache: Path) -> None:
    model = prepare(ModelSource("bundled:kosbert-mini"))
    assert model.kept() is model and not model.travels
    assert (model.digests.weights, model.digests.tokenizer) == MINI
    assert not own_cache.exists()


def test_a_converted_model_has_the_hash_of_its_pickles(folder: Path) -> None:
    expected = Encoder.load(str(folder), FP32).encode(everyday()[:9])
    pickle_weights(folder)
    before = sha256(folder, read_spec(folder).weight_files)
    model = of(folder).kept()
    assert model.digests.weights == before and model.travels
    assert model.digest != model.digests.all
    assert not model.spec().pickled
    np.testing.assert_array_equal(Encoder(model.spec(), FP32).encode(everyday()[:9]), expected)


@pytest.mark.parametrize("pickled", [False, True])
def test_another_machine_takes_what_the_driver_uploaded(
    pickled: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pickled:
        pickle_weights(folder)
    mirror = Storage(str(tmp_path / "mirror"))
    model = of(folder).kept().upload(mirror)
    assert model.upload(mirror).uploaded.address == model.uploaded.address
    there = elsewhere(model, monkeypatch, tmp_path)
    spec = there.spec()
    assert spec.folder.is_relative_to(tmp_path / "other")
    vectors = Encoder(spec, FP32).encode(everyday()[:9])
    np.testing.assert_array_equal(vectors, Encoder(model.spec(), FP32).encode(everyday()[:9]))
    assert there.spec().folder == spec.folder
    assert sorted(path.name for path in spec.folder.parent.iterdir()) == [spec.folder.name]
    # A copy that is not the driver's is not loaded.
    shutil.rmtree(spec.folder)
    spoil(Path(there.uploaded.root))
    with pytest.raises(ModelError, match="has other files under that name than driver; put the same files on all nodes"):
        there.spec()


def test_on_a_shared_disk_the_copy_is_taken_where_it_is(folder: Path, tmp_path: Path, monkeypatch) -> None:
    model = of(folder).kept()
    there = replace(elsewhere(model, monkeypatch, tmp_path), folder=model.folder)
    assert there.spec().folder == model.folder
    spoil(model.folder)
    with pytest.raises(ModelError, match="no such model folder|has another model"):
        replace(there, source=ModelSource("/not/here")).spec()


def test_a_bundled_model_is_found_wherever_the_package_is(tmp_path: Path, monkeypatch) -> None:
    model = prepare(ModelSource("bundled:kosbert-mini"))
    assert elsewhere(model, monkeypatch, tmp_path).spec().dimension == 256


def test_errors_name_the_model_as_the_user_did(folder: Path) -> None:
    model = of(folder).kept()
    with pytest.raises(ModelError) as raised, model.naming():
        raise ModelError(f"{model.folder}/config.json: something")
    assert str(raised.value) == f"{folder}/config.json: something"


def test_an_unknown_architecture_is_told_before_anything_starts(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "grapheme_bert"}))
    with pytest.raises(ModelError, match=r"config.json: transformers \S+ does not support models of type 'grapheme_bert'"):
        of(folder)


def test_an_output_is_of_the_model_that_made_it_or_of_none(folder: Path) -> None:
    made = of(folder)
    fingerprint: dict[str, Any] = {"weights": made.digests.weights, "tokenizer": made.digests.tokenizer}
    made.require_made(fingerprint, "out")
    # Version 0.1.0 hashed all pickles together.
    pickle_weights(folder)
    (folder / "training_args.bin").write_bytes(b"x")
    spec = read_spec(folder)
    legacy = fingerprint | {"weights": sha256(folder, spec.legacy_weight_files)}
    assert legacy["weights"] != sha256(folder, spec.weight_files)
    of(folder).require_made(legacy, "out")
    for other in (fingerprint, legacy | {"tokenizer": "x"}):
        with pytest.raises(ModelError, match="model: not the model that made out .* restore that model, or embed"):
            of(folder).require_made(other, "out")


HUB = """
import json, sys
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource
model = prepare(ModelSource("team/model", "main", commits={"team/model": sys.argv[1]} if sys.argv[1] else {}))
kept = model.kept()
print(json.dumps(model.described() | {"weights": model.digests.weights, "same": kept.folder == model.folder,
                 "legacy": model.legacy_weights(), "travels": kept.travels, "folder": str(kept.folder)}))
"""


def test_a_hub_name_is_resolved_to_a_commit_that_can_be_had_again(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "team" / "model"
    shutil.copytree(tiny_model, repository)
    hub = Hub(tmp_path / "hub")

    def found(commit: str = "", **more: str) -> dict[str, Any]:
        env = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "hf"), **more}
        done = subprocess.run([sys.executable, "-c", HUB, commit], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    try:
        first = found()
        assert (first["name"], first["revision"], first["commit"]) == ("team/model", "main", hub.commit("team/model"))
        assert first["same"] and not first["travels"]
        assert first["weights"] == first["legacy"] == sha256(tiny_model, read_spec(tiny_model).weight_files)
        # The branch moves on: the recorded commit is still the same model.
        hub.earlier[first["commit"]] = Path(shutil.copytree(repository, tmp_path / "earlier"))
        spoil(repository)
        second = found()
        assert second["commit"] != first["commit"] and second["weights"] != first["weights"]
        assert found(first["commit"])["weights"] == first["weights"]
        assert found(HF_HUB_OFFLINE="1")["commit"] == second["commit"]
        # Pickles: converted, with the hash of what lies on the hub; 0.1.0's hash is had on demand.
        pickle_weights(repository)
        (repository / "training_args.bin").write_bytes(b"x")
        third = found()
        assert not third["same"] and third["travels"] and third["legacy"] != third["weights"]
        assert third["legacy"] == sha256(repository, read_spec(repository).legacy_weight_files)
    finally:
        hub.close()


def test_a_gated_model_needs_a_token_on_the_driver_only(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "hub" / "team" / "model")
    hub = Hub(tmp_path / "hub")
    hub.gated.add("team/model")
    env = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "hf")}
    try:
        done = subprocess.run([sys.executable, "-c", HUB, ""], env=env, capture_output=True, text=True, check=False)
        consent = f"team/model at main: the hub asks for consent; accept the licence at {env['HF_ENDPOINT']}/team/model"
        assert f"{consent} and set HF_TOKEN to a token of that account" in done.stderr
        env["HF_TOKEN"] = "hf_token"
        done = subprocess.run([sys.executable, "-c", HUB, ""], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["travels"]  # nodes have no token
    finally:
        hub.close()


def test_a_copy_is_read_under_the_same_options() -> None:
    model = prepare(ModelSource(TINY), SpecOptions(max_seq_length=16, prompt="글: ")).kept()
    assert (model.spec().max_seq_length, model.spec().prompt) == (16, "글: ")


def test_search_and_verify_refuse_a_model_that_is_not_the_outputs(cli, told, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("embed", "bundled:everyday", out, "--model", folder, "--keep", "text", "--set", "encoder.actors=1")
    assert "done: 520 rows" in done.stdout
    receipts = pq.read_table(out / "_kosbert" / "receipts")
    assert 0 <= sum(receipts["unknown_tokens"].to_pylist()) < sum(receipts["encoded_tokens"].to_pylist()) / 10
    hit = json.loads(cli("search", out, everyday()[0], "--top-k", "1", "--format", "jsonl").stdout)
    assert hit["rank"] == 1
    spoil(folder)
    for command in (["search", out, "질문"], ["verify", out, "--sample", "3"]):
        assert told(*command, code=1) == (
            f"{folder}: not the model that made {out} (its weights or tokenizer differ); restore that model, or "
            "embed into another output"
        )
