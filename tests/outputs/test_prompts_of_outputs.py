"""Documents get the model's document prompt and queries its query prompt; an output that exists keeps its prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from conftest import everyday
from sentence_transformers import SentenceTransformer

from kosbert_ray.outputs.output import Output

PROMPTS = {"query": "질문: ", "document": "글: "}
FP32 = ["--set", "encoder.precision=fp32"]
TEXTS = everyday()[:30]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def name_prompts(model: Path) -> SentenceTransformer:
    """Gives a model its prompts, which are not part of its weights, and loads it."""
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}), "utf-8")
    return SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": "float32"})


def write_texts(folder: Path, name: str, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")


def read(output: Path) -> tuple[list[str], np.ndarray]:
    table = ds.dataset(output, format="parquet").to_table()
    return table["text"].to_pylist(), np.stack(table["embedding"].to_numpy())


def scores(hits: str) -> list[float]:
    return [json.loads(line)["score"] for line in hits.splitlines()]


def best(queries: np.ndarray, documents: np.ndarray) -> float:
    cosines = queries @ documents.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(documents, axis=1)
    return float(cosines.max())


def test_documents_and_queries_are_those_of_sentence_transformers(cli, model: Path, tmp_path: Path) -> None:
    reference = name_prompts(model)
    write_texts(tmp_path / "in", "a.jsonl", TEXTS)
    done = cli("embed", tmp_path / "in", tmp_path / "out", "--model", model, "--keep", "text", *FP32)
    assert "prompt: '글: ' (the model's 'document')\n" in done.stderr
    texts, vectors = read(tmp_path / "out")
    np.testing.assert_allclose(vectors, reference.encode_document(texts), atol=1e-4)
    assert json.loads((tmp_path / "out/_kosbert/job.json").read_text())["fingerprint"]["prompt"] == "글: "
    asked = ["search", tmp_path / "out", TEXTS[3], "-k", "1", "--format", "jsonl", *FP32]
    found = cli(*asked)
    assert "prompt of the queries: '질문: ' (the model's 'query')\n" in found.stderr
    assert scores(found.stdout)[0] == pytest.approx(best(reference.encode_query([TEXTS[3]]), vectors), abs=1e-5)
    named = best(reference.encode([TEXTS[3]], prompt_name="document"), vectors)
    assert scores(cli(*asked, "--prompt-name", "document").stdout)[0] == pytest.approx(named, abs=1e-5)
    assert scores(cli(*asked, "--prompt", PROMPTS["document"]).stdout)[0] == pytest.approx(named, abs=1e-5)
    hit = Output.open(tmp_path / "out", encoder={"precision": "fp32"}).search(TEXTS[3], prompt_name="document")[0]
    assert hit.score == pytest.approx(named, abs=1e-5)


def test_an_output_of_an_earlier_version_keeps_its_prompt(cli, told, model: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in", "a.jsonl", TEXTS)
    embed = ["embed", tmp_path / "in", tmp_path / "out", "--model", model, "--keep", "text", *FP32]
    assert "prompt: none\n" in cli(*embed).stderr
    # Earlier versions resolved the prompt of encode, which is empty here.
    reference = name_prompts(model)
    write_texts(tmp_path / "in", "b.jsonl", everyday()[30:40])
    assert "kept from job.json, a new output gets '글: '" in cli(*embed).stderr
    texts, vectors = read(tmp_path / "out")
    assert len(texts) == 40
    np.testing.assert_allclose(vectors, reference.encode(texts), atol=1e-4)
    assert "verified" in cli("verify", tmp_path / "out", "--sample", "20", *FP32).stdout
    plan = cli("plan", tmp_path / "in", tmp_path / "out")
    assert "prompt    none; the model has 'document'" in plan.stdout
    found = cli("search", tmp_path / "out", TEXTS[3], "-k", "1", "--format", "jsonl", *FP32)
    assert "embedded without the model's document prompt '글: '" in found.stderr
    assert scores(found.stdout)[0] == pytest.approx(best(reference.encode_query([TEXTS[3]]), vectors), abs=1e-5)
    refused = told(*embed, "--set", "model.prompt_name=document", code=1)
    assert "add --set 'model.prompt=\"\"', or choose another output" in refused


def test_a_new_version_of_an_output_inherits_its_prompt_or_takes_another(cli, model: Path, tmp_path: Path) -> None:
    name_prompts(model)
    write_texts(tmp_path / "in", "a.jsonl", TEXTS)
    old, new = tmp_path / "all/v1", ["embed", "--into"]
    cli("embed", tmp_path / "in", old, "--model", model, "--set", "model.prompt='따로: '", *FP32)
    cli("promote", old)
    assert "prompt: '따로: '\n" in cli(*new, tmp_path / "all/v2", *FP32).stderr
    named = cli(*new, tmp_path / "all/v3", "--set", "model.prompt_name=document", *FP32).stderr
    assert "prompt: '글: ' (the model's 'document')\n" in named
