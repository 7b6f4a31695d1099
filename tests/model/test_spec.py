"""Reading a model folder, and naming the cause where it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import Normalize, read_spec

ST = "sentence_transformers.models."


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def write(path: Path, **values) -> None:
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def test_the_format_of_ko_sbert_sts_is_read(folder: Path) -> None:
    spec = read_spec(folder)
    assert (spec.pooling, spec.dimension, spec.max_seq_length, spec.do_lower_case) == (("mean",), 128, 128, False)
    assert (spec.prompt, spec.head, spec.normalized) == ("", (), False)


def test_a_pooling_mode_of_old_and_new_spelling_is_the_same(folder: Path) -> None:
    config = folder / "1_Pooling" / "config.json"
    for content, modes in (
        ({"word_embedding_dimension": 128, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"embedding_dimension": 128, "pooling_mode": "max"}, ("max",)),
        ({"embedding_dimension": 128, "pooling_mode": ["cls", "mean"]}, ("cls", "mean")),
        ({"word_embedding_dimension": 128}, ("mean",)),
    ):
        config.write_text(json.dumps(content))
        assert read_spec(folder).pooling == modes
        assert read_spec(folder).dimension == 128 * len(modes)


def test_an_unsupported_pooling_mode_is_refused_by_name(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 128, "pooling_mode": "median"}))
    with pytest.raises(ModelError, match="median.*supported are cls, lasttoken, max, mean, mean_sqrt_len_tokens, weighted"):
        read_spec(folder)


def test_an_unsupported_module_is_refused_by_name(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "path": "2_CNN", "type": ST + "CNN"}]))
    with pytest.raises(ModelError, match="module CNN is not supported"):
        read_spec(folder)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": ST + "WordEmbeddings"}]))
    with pytest.raises(ModelError, match=r"its modules are WordEmbeddings; supported are Transformer, Pooling \(or Static"):
        read_spec(folder)


def test_modules_outside_the_folder_are_refused(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../../etc"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="points outside"):
        read_spec(folder)


def test_normalize_and_dropout_are_read(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules += [
        {"path": "2_D", "type": ST + "Dropout"},
        {"path": "3_Normalize", "type": ST + "Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert read_spec(folder).head == (Normalize(),)
    assert read_spec(folder).normalized


def test_the_weights_are_those_that_transformers_loads(folder: Path) -> None:
    def names() -> list[str]:
        return [path.name for path in read_spec(folder).weight_files if path.name != "config.json"]

    for stray in ("adapter_model.safetensors", "training_args.bin", "pytorch_model.bin"):
        (folder / stray).write_bytes(b"not looked at")
    assert names() == ["model.safetensors"]
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    (folder / "model.safetensors").unlink()
    assert names() == ["pytorch_model.bin"]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(
        ModelError, match=r"no weights in it \(model\.safetensors or .*; adapter_model\.safetensors is neither"
    ):
        read_spec(folder)
    for shard in shards:
        (folder / shard).touch()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    assert names() == shards
    (folder / shards[1]).unlink()
    with pytest.raises(ModelError, match=f"{shards[1]}: missing, and pytorch_model.bin.index.json names it"):
        read_spec(folder)


def test_version_0_1_0_hashed_the_same_files_unless_others_lie_beside_them(folder: Path) -> None:
    spec = read_spec(folder)
    assert spec.legacy_weight_files == spec.weight_files
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "training_args.bin").touch()
    spec = read_spec(folder)
    assert [path.name for path in spec.legacy_weight_files][:2] == ["pytorch_model.bin", "training_args.bin"]
    assert spec.weight_files[1:] == spec.legacy_weight_files[2:]


def test_a_folder_without_a_tokenizer_is_refused_before_transformers_makes_an_empty_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer in it"):
        read_spec(folder)


def test_a_broken_or_foreign_folder_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        read_spec(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: missing"):
        read_spec(folder)
    with pytest.raises(ModelError, match="not a model folder"):
        read_spec(tmp_path)


def test_roberta_has_two_positions_fewer_than_embeddings(folder: Path) -> None:
    write(folder / "config.json", model_type="roberta", max_position_embeddings=130, pad_token_id=1)
    assert read_spec(folder).max_seq_length == 128
    with pytest.raises(UsageError, match="128 positions"):
        read_spec(folder, SpecOptions(max_seq_length=129))


def test_the_hash_changes_with_content_and_not_with_place(folder: Path, tiny_model: Path) -> None:
    here, there = read_spec(folder), read_spec(tiny_model)
    assert sha256(here.folder, here.weight_files) == sha256(there.folder, there.weight_files)
    write(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False)
    assert sha256(here.folder, here.weight_files) != sha256(there.folder, there.weight_files)


WRONG = ["[]", "null", '"x"', "5"]


@pytest.mark.parametrize("content", WRONG)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
        "adapter_config.json",
    ],
)
def test_json_of_the_wrong_type_is_named(name: str, content: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).write_text(content)
    if name == "adapter_config.json":
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"{name}: must hold a (JSON object|list of modules)") as raised:
        read_spec(locate_folder(ModelSource(str(folder), allow_remote_code=True)), SpecOptions(allow_remote_code=True))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ['{"a": 1}', '["a"]', '[{"type": "sentence_transformers.models.Transformer"}]'])
def test_modules_without_type_or_path_are_named(content: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "modules.json").write_text(content)
    with pytest.raises(ModelError, match=r"modules.json: (must hold a list of modules|.* is no module with type and path)"):
        read_spec(folder)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"types": {}, "structure": {"a": ["x"]}}', '{"types": {}, "structure": {}}']
)
def test_a_broken_router_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.base.modules.router.Router", "path": ""}])
    )
    (tmp_path / "router_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"router_config.json: must hold"):
        read_spec(tmp_path)
