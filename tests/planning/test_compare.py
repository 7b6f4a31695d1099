"""``doctor --compare``: a model's vectors beside sentence-transformers' on the user's own texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, everyday

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.encoder import Encoder
from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.planning.compare import compare


def config(folder: Path, *settings: str) -> JobConfig:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ["", *everyday()[:40]]]
    (folder / "in.jsonl").write_text("\n".join(lines), "utf-8")
    return load_config(None, [f"input.path={folder / 'in.jsonl'}", f"model.name={TINY}", *settings])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_vectors_agree_with_a_prompt_and_a_length(tmp_path: Path, engine: str) -> None:
    settings = (f"encoder.engine={engine}", "encoder.precision=fp32", "model.prompt='글: '", "model.max_seq_length=12")
    found = compare(config(tmp_path, *settings), 15)
    assert found.startswith("least cosine to sentence-transformers over 15 texts: 1.000000")
    assert engine in found


def test_a_vector_that_differs_is_shown_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts: np.roll(encode(self, texts), 1, axis=0))
    with pytest.raises(ModelError, match=r"over 15 texts: -?0\.\d+ .*, for '.+'; please report the model"):
        compare(config(tmp_path, "encoder.precision=fp32"), 15)


def test_without_sentence_transformers_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kosbert_ray.planning.compare.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        compare(config(tmp_path), 5)


def test_the_command_shows_it_as_a_check(cli, told, tmp_path: Path) -> None:
    config(tmp_path)
    options = ("--model", TINY, "--set", "ray.address=127.0.0.1:9")
    done = cli("doctor", tmp_path / "in.jsonl", *options, "--compare", "5", code=1)  # there is no Ray
    assert "ok   compare   least cosine to sentence-transformers over 5 texts: " in done.stdout
    assert "--compare: -1 is no number of texts" in told("doctor", "bundled:everyday", *options, "--compare", "-1", code=2)
