"""``kosbert-ray train``: a recipe with all kinds of stages on tiny data, resuming after a kill, and error messages."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, command, everyday, wait_for
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from kosbert_ray.settings import load_settings
from kosbert_ray.training.config import TrainConfig

pytestmark = pytest.mark.timeout(280)
SENTENCES = everyday()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates data files of every kind from the bundled sentences."""
    root = tmp_path_factory.mktemp("data")
    for name, start, count in (("train", 0, 60), ("dev", 60, 30), ("test", 90, 30)):
        lines = ["sentence1\tsentence2\tscore"]
        for index in range(start, start + count):
            first, second = SENTENCES[index], SENTENCES[index][2:] if index % 2 else SENTENCES[index + 200]
            lines.append(f"{first}\t{second}\t{4.5 if index % 2 else 0.5}")
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    nli = ["sentence1\tsentence2\tgold_label"]
    for index in range(300, 320):
        nli += [f"{SENTENCES[index]}\t{SENTENCES[index][:-2]}\tentailment", f"{SENTENCES[index]}\t{index}\tcontradiction"]
    (root / "nli.tsv").write_text("\n".join(nli), "utf-8")
    (root / "ko-en.tsv").write_text(
        "\n".join(f"{text}\tsentence {i}" for i, text in enumerate(SENTENCES[320:360])), "utf-8"
    )
    (root / "texts.txt").write_text("\n".join(SENTENCES), "utf-8")
    return root


@pytest.fixture(scope="module")
def recipe(data_root: Path, tiny_model: Path) -> Path:
    sts = {"path": "train.tsv", "kind": "sts", "name": "Made-up STS", "licence": "CC0"}
    teacher = {"model": str(tiny_model), "whitening": 0.5}
    texts = [{"path": "texts.txt", "kind": "texts", "limit": 200}, {"path": "ko-en.tsv", "kind": "parallel"}]
    short = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0.1, "evaluation_steps": 5}
    new = {"vocabulary": 400, "layers": 1, "width": 64, "data": [{"path": "texts.txt", "kind": "texts"}]}
    stages = [
        {"name": "copy", "tasks": [{"loss": "distillation", "teacher": teacher, "data": texts}], "group_by_length": True},
        {
            "name": "both",
            "tasks": [
                {"loss": "multiple_negatives_ranking", "data": [{"path": "nli.tsv", "kind": "nli"}]},
                {"loss": "cosine_similarity", "data": [sts]},
            ],
        },
    ]
    config = {
        "model": {"new": new, "max_seq_length": 64},
        "stages": [{**stage, **short} for stage in stages],
        "dev": "dev.tsv",
        "test": ["test.tsv"],
        "dtype": "fp16",
        "card": {"title": "tiny", "licence": "cc0-1.0"},
    }
    path = data_root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(cli, recipe: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Trains without interruption. Returns the model's folder, standard output and standard error."""
    output = tmp_path_factory.mktemp("trained") / "model"
    done = cli("train", output, "--config", recipe, "--data-root", data_root)
    return output, done.stdout, done.stderr


def test_training_writes_a_sentence_transformers_folder_with_a_model_card(trained) -> None:
    output, out, err = trained
    assert "both: 80 examples" in err  # 20 triplets and 60 pairs
    assert "dev cosine Spearman" in err
    assert out.splitlines()[-1] == f"done: 2 stages, {200 + 40 + 80} examples; the model is in {output}"
    vectors = SentenceTransformer(str(output), device="cpu").encode(SENTENCES[:4])
    assert vectors.shape == (4, 64)
    assert np.isfinite(vectors).all()
    modules = json.loads((output / "modules.json").read_text("utf-8"))
    assert [one["type"] for one in modules] == [
        f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling")
    ]
    assert json.loads((output / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"] == 64
    card = (output / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc0-1.0"
    assert "| Made-up STS | CC0 |" in card
    assert "Held out: dev, test." in card
    metrics = front["model-index"][0]["results"][1]["metrics"]
    assert f"{metrics[0]['value']:.2f}/{metrics[1]['value']:.2f}" in out.splitlines()[1]
    weights = load_file(output / "model.safetensors")
    assert {str(array.dtype) for array in weights.values()} == {"float16"}


@pytest.mark.faults
def test_a_killed_training_resumes_and_produces_the_same_weights(
    trained, recipe: Path, data_root: Path, cli, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    arguments = ("train", output, "--config", recipe, "--data-root", data_root)
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command(*arguments), stdout=log, stderr=log, cwd=ROOT)
        checkpoints = output / "_training" / "0-copy" / "checkpoints"
        wait_for(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")), 120, "no checkpoint")
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert not (output / "modules.json").exists()
    cli(*arguments)
    again, first = load_file(output / "model.safetensors"), load_file(trained[0] / "model.safetensors")
    for name, array in first.items():
        np.testing.assert_allclose(again[name].astype(float), array.astype(float), atol=2e-3, err_msg=name)


def test_the_folder_of_another_recipe_or_a_finished_model_is_refused(
    told, recipe: Path, data_root: Path, tmp_path: Path
) -> None:
    rest = ("--config", recipe, "--data-root", data_root)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "modules.json").write_text("[]")
    assert "already contains a model; choose another folder" in told("train", tmp_path / "done", *rest, code=2)
    work = tmp_path / "begun" / "_training"
    work.mkdir(parents=True)
    (work / "recipe.json").write_text(json.dumps({"seed": 1}), "utf-8")
    assert "belongs to a training with different dev, " in told("train", tmp_path / "begun", *rest, code=2)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("train_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_valid(path: Path) -> None:
    config = load_settings(TrainConfig, str(path), [])
    assert config.dev == "korsts/sts-dev.tsv"


def test_the_published_recipe_is_the_default() -> None:
    stage = load_settings(TrainConfig, str(ROOT / "configs" / "train_ko_sbert_sts.yaml"), []).stages[0]
    bare = load_settings(TrainConfig, None, [], {"stages": [{"name": "sts", "tasks": [stage.tasks[0].model_dump()]}]})
    assert bare.stages[0] == stage
    assert (stage.batch_size, stage.epochs, stage.learning_rate, stage.warmup_steps) == (8, 4, 2e-5, 288)
    assert (stage.weight_decay, stage.max_grad_norm, stage.evaluation_steps) == (0.01, 1, 1000)
    assert bare.model.base == "klue/bert-base"


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["data_root=/nowhere"], 1, "/nowhere/dev.tsv: no such file; check data_root and the path of the data"),
        (["stages=[]"], 2, "stages: tuple should have at least 1 item after validation"),
        (["model.base=3"], 2, "model.base: input should be a valid string, not 3"),
        (["model.new=null", "model.base=/no/model"], 1, "/no/model: no such model folder"),
    ],
)
def test_a_problem_with_a_recipe_is_one_line(
    told, recipe: Path, data_root: Path, tmp_path: Path, settings: list[str], code: int, message: str
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    root = [] if "data_root" in settings[0] else ["--data-root", data_root]
    assert message in told("train", tmp_path / "out", "--config", recipe, *root, *options, code=code)
