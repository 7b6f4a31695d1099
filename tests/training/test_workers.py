"""Data-parallel training with Ray Train. Slow: starts Ray and two workers that import torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import everyday
from sentence_transformers import SentenceTransformer

SENTENCES = everyday()


@pytest.mark.slow
def test_two_workers_train_one_model(cli, tiny_model: Path, tmp_path: Path) -> None:
    for name, start in (("train", 0), ("dev", 200)):
        lines = ["sentence1\tsentence2\tscore"]
        for index in range(start, start + 64):
            second = SENTENCES[index][2:] if index % 2 else SENTENCES[index + 100]
            lines.append(f"{SENTENCES[index]}\t{second}\t{4.5 if index % 2 else 0.5}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines), "utf-8")
    stage = {"name": "sts", "tasks": [{"data": [{"path": "train.tsv", "kind": "sts"}]}], "epochs": 1, "batch_size": 4}
    recipe = {"model": {"base": str(tiny_model)}, "stages": [stage], "dev": "dev.tsv"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    done = cli(
        *("train", tmp_path / "model", "--config", tmp_path / "recipe.yaml", "--data-root", tmp_path, "--workers", "2")
    )
    assert "sts: 2 workers on CPUs" in done.stderr
    log = (tmp_path / "model" / "_training" / "0-sts" / "log.json").read_text("utf-8")
    assert '"step": 8' in log  # 64 pairs over 2 workers of 4 at a time
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["가"]).shape == (1, 128)
    assert "sts: step 8 of 8: dev cosine Spearman" in done.stderr
    assert "done: 1 stages, 64 examples" in done.stdout
