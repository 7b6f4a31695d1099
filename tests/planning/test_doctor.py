"""What the doctor finds where all is well, and where it is not."""

from __future__ import annotations

import json
import shutil
import unicodedata
from itertools import islice
from pathlib import Path

from conftest import S3, TINY, everyday

from kosbert_ray.config import load_config
from kosbert_ray.planning.doctor import examine

OUTPUTS = Path(__file__).parents[1] / "outputs_0_1_0"


def findings(stdout: str) -> dict[str, tuple[str, str]]:
    return {line[5:14].strip(): (line[:3].strip(), line[15:]) for line in stdout.splitlines()}


def test_all_is_well(cli, s3: S3) -> None:
    s3.filesystem().mkdir("doctor")
    done = cli("doctor", "bundled:everyday", "s3://doctor/out", "--model", TINY, env=s3.env)
    found = findings(done.stdout)
    assert {state for state, _ in found.values()} == {"ok"}
    assert list(found) == ["versions", "machine", "devices", "disk", "model", "input", "job", "output", "ray", "encoders"]
    assert "128 dimensions, up to 128 tokens, prompt none; openvino " in found["model"][1]
    assert "4 files, 56.4 kB" in found["input"][1]
    assert "4 new files (56.4 kB)" in found["job"][1]
    assert found["output"][1] == "s3://doctor/out: readable, writable and deletable"
    assert "a local Ray starts: 1 nodes" in found["ray"][1]
    assert not s3.filesystem().find("doctor")


def test_each_thing_that_is_wrong_is_named(cli, s3: S3, tmp_path: Path) -> None:
    env = s3.env | {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readonly"}
    options = ["--model", tmp_path / "no-model", "--set", "ray.address=127.0.0.1:9"]
    done = cli("doctor", tmp_path / "nothing", "s3://ready/out", *options, env=env, code=1)
    found = findings(done.stdout)
    assert [name for name, (state, _) in found.items() if state == "BAD"] == ["model", "input", "job", "output", "ray"]
    assert "no such file or folder" in found["input"][1]
    assert "s3://ready/out" in found["output"][1]
    assert "127.0.0.1:9 cannot be reached" in found["ray"][1]


def test_a_missing_column_and_another_jobs_output_are_found(cli, tmp_path: Path) -> None:
    shutil.copytree(OUTPUTS / "whole", tmp_path / "out")
    options = ["--model", "bundled:kosbert-mini", "--set", "ray.address=127.0.0.1:9"]
    done = cli("doctor", OUTPUTS / "in", tmp_path / "out", *options, "--set", "encoder.precision=fp32", code=1)
    assert "encoder.precision is auto in the output but fp32 in this job" in findings(done.stdout)["job"][1]
    done = cli("doctor", OUTPUTS / "in", tmp_path / "other", *options, "--keep", "nothing", code=1)
    assert "no column 'nothing'" in findings(done.stdout)["input"][1]


def test_prompts_and_unknown_tokens_are_shown(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    prompts = {"prompts": {"query": "질문: ", "passage": "글: "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts), "utf-8")
    texts = [unicodedata.normalize("NFD", text) for text in everyday()[:50]]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    config = load_config(None, [f"input.path={tmp_path / 'in.jsonl'}", f"model.name={model}"])
    found = {finding.name: finding for finding in islice(examine(config), 6)}
    assert found["model"].ok and "prompt none; the model has 'passage' (model.prompt_name)" in found["model"].message
    assert "add --set model.prompt_name=passage to use it" in found["model"].message
    assert found["input"].ok and "of the tokens are unknown to the model" in found["input"].message
