"""PEFT adapters: merged into their base model, with the vectors that sentence-transformers computes with the adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import everyday
from models import pickle_weights
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from reference import cosines
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM
from zoo import ZOO, save

from kosbert_ray.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import ModelError
from kosbert_ray.model.locate import locate
from kosbert_ray.model.prepare import prepare
from kosbert_ray.model.source import ModelSource

FP32 = EncoderOptions(precision="fp32", device="cpu", engine="torch")
TEXTS = everyday()[:12]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "기본 모델"))


def lora(**more: object) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=32, target_modules=["query", "value"], init_lora_weights=False, **more)


def adapted(base: Path, folder: Path, config: LoraConfig) -> np.ndarray:
    """Saves an adapter as sentence-transformers does, and returns the vectors that it computed before."""
    torch.manual_seed(0)
    model = SentenceTransformer(str(base), device="cpu", model_kwargs={"dtype": "float32"})
    model.add_adapter(config)
    model.save_pretrained(str(folder))
    assert not (folder / "config.json").exists()
    found: np.ndarray = model.encode(TEXTS)
    return found


def theirs(folder: Path) -> np.ndarray:
    """Vectors of sentence-transformers in fp32."""
    found: np.ndarray = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"}).encode(TEXTS)
    return found


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "bias and a whole layer"])
def test_vectors_are_those_of_sentence_transformers_with_the_adapter(kind: str, base: Path, tmp_path: Path) -> None:
    more = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "bias and a whole layer": {"bias": "lora_only", "modules_to_save": ["encoder.layer.0.output.dense"]},
    }[kind]
    folder = tmp_path / "어댑터"
    expected = adapted(base, folder, lora(**more))
    # transformers 5.23 loads a DoRA adapter without its magnitudes.
    assert (cosines(theirs(folder), expected).min() > 0.999999) == (kind != "dora")
    # A newer peft writes keys that this one does not know, with what it did before as their value.
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"some_future_key": None}))
    encoder = Encoder.load(str(folder), FP32)
    assert cosines(encoder.encode(TEXTS), expected).min() > 0.999999
    assert cosines(Encoder.load(str(base), FP32).encode(TEXTS), expected).min() < 0.99


def test_an_adapter_of_a_language_model_brings_its_tokenizer_from_the_base(tmp_path: Path) -> None:
    """As peft saves it: without modules and tokenizer, with the names of a language model's weights."""
    base = _language_model(tmp_path)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter")
    found = Encoder.load(str(tmp_path / "adapter"), FP32)
    assert found.spec.pooling == ("lasttoken",)  # by the base's architecture
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    ).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "merged" / name)
    assert cosines(found.encode(TEXTS), theirs(tmp_path / "merged")).min() > 0.999999


def _language_model(folder: Path) -> Path:
    name = next(name for name, row in ZOO.items() if row.model.endswith("ForCausalLM"))
    save(ZOO[name], folder)
    return folder / "plain"


def test_it_is_merged_once_and_known_by_what_it_was_made_of(base: Path, tmp_path: Path, own_cache: Path) -> None:
    folder = tmp_path / "adapter"
    adapted(base, folder, lora())
    first = prepare(ModelSource(str(folder)))
    assert first.frozen and first.travels and first.kept().folder == first.folder == locate(ModelSource(str(folder))).folder
    assert [path.name for path in own_cache.iterdir()] == [first.folder.name]
    assert f"{folder} is an adapter, merged into {base}" in locate(ModelSource(str(folder))).notices
    # Another place of the base is the same model; other weights of the base or the adapter are not.
    moved = base.rename(tmp_path / "moved")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert prepare(ModelSource(str(folder))).digests.weights == first.digests.weights
    pickle_weights(moved)
    pickled = prepare(ModelSource(str(folder)))
    assert pickled.digests.weights != first.digests.weights
    assert (Encoder(pickled.spec(), FP32).encode(TEXTS) == Encoder(first.spec(), FP32).encode(TEXTS)).all()
    adapted(moved, folder, lora(use_rslora=True))
    assert prepare(ModelSource(str(folder))).digests.weights not in (first.digests.weights, pickled.digests.weights)


def test_what_cannot_be_merged_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"
    adapted(base, folder, lora())

    def refused(message: str, **change: object) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=message) as raised:
            locate(ModelSource(str(copy)))
        assert "\n" not in str(raised.value)
        shutil.rmtree(copy)

    refused("base model cannot be found .*no such model folder.*; correct", base_model_name_or_path="/not/here")
    refused("does not name its base model", base_model_name_or_path=None)
    refused(r"does not fit its base model \(", target_modules=["key"])
    refused(r"does not fit its base model \(.*size mismatch", r=8)
    refused("an adapter of type NEWTHING cannot be merged", peft_type="NEWTHING")
    refused("the installed peft does not know some_future_key; pip install --upgrade peft", some_future_key=1)
    refused("its base model cannot be found .*copy/config.json: missing", base_model_name_or_path=str(tmp_path / "copy"))
    tuned = Path(shutil.copytree(folder, tmp_path / "tuned"))
    virtual = get_peft_model(
        AutoModel.from_pretrained(base), PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4)
    )
    virtual.save_pretrained(tuned)
    with pytest.raises(ModelError, match="an adapter of type PROMPT_TUNING cannot be merged into its base model"):
        locate(ModelSource(str(tuned)))
    (folder / "adapter_model.safetensors").rename(folder / "x")
    refused("no weights of the adapter in it")
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused("is a Git LFS pointer")
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    refused("adapter_model.safetensors: cannot be read")
    monkeypatch.setattr("kosbert_ray.model.adapter.find_spec", lambda _: None)
    refused(r"pip install 'kosbert-ray\[peft\]'")


def test_a_pickled_adapter_is_read_as_tensors_only(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapted(base, folder, lora())
    expected = Encoder.load(str(folder), FP32).encode(TEXTS)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert (Encoder.load(str(folder), FP32).encode(TEXTS) == expected).all()
    torch.save({"x": AutoModel}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="holds more than tensors"):
        locate(ModelSource(str(folder)))


def test_a_folder_of_named_adapters_points_to_one(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "adapters" / "한글", lora())
    with pytest.raises(ModelError, match="adapters: not a model folder .*; the adapter in it is .*adapters/한글"):
        Encoder.load(str(tmp_path / "adapters"), FP32)


def test_what_a_killed_merge_left_is_swept(base: Path, tmp_path: Path, own_cache: Path) -> None:
    adapted(base, tmp_path / "adapter", lora())
    merged = locate(ModelSource(str(tmp_path / "adapter"))).folder
    left = own_cache / f"partial-{merged.name}-x"
    merged.rename(left)
    assert locate(ModelSource(str(tmp_path / "adapter"))).folder == merged
    assert [path.name for path in own_cache.iterdir()] == [merged.name]
