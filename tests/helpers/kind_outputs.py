"""Embeds the bundled sentences to outputs of other kinds of vectors than dense ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kosbert_ray
from kosbert_ray import Output

SOURCE = "bundled:everyday"
ENCODER = {"precision": "fp32", "device": "cpu"}
QUERIES = ["비가 오는 날에 무엇을 먹을까?", "지하철을 갈아타는 곳"]


def embed(folder: Path, model: Path | str, **options: Any) -> Output:
    """Embeds the sentences in this process and opens the output."""
    options = {"input": {"keep": ["id"]}, "executor": "local", "encoder": ENCODER} | options
    kosbert_ray.embed(SOURCE, folder, model=str(model), **options)
    return Output.open(folder, encoder=ENCODER)
