"""Writes docs/reference/models.md from the zoo: ``make docs-generate``."""

from __future__ import annotations

from pathlib import Path

from zoo import ZOO, Row

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
HEAD = """# Models and architectures

Generated from the models that `tests/encoder/test_zoo.py` compares with sentence-transformers; do not edit. Each row is
a tiny model of that kind with random weights. Its vectors have a cosine of at least 0.999999 to those of
sentence-transformers in fp32, on PyTorch and, where the last column has a yes, on OpenVINO. The models named on the hub
are of that kind; they were not loaded, because no hub is reachable from where the tests run.

| architecture | like, on the hub | pooling | on a CPU | OpenVINO |
|---|---|---|---|---|
"""
WAYS = {"packed": "packed", "one_length": "batches of equal length"}


def page() -> str:
    """The page's content."""
    return HEAD + "".join(map(_line, ZOO.items()))


def _line(item: tuple[str, Row]) -> str:
    name, row = item
    cells = [name, ", ".join(f"`{model}`" for model in row.hub), ", ".join(row.pooling), WAYS[row.attention]]
    return f"| {' | '.join([*cells, 'yes' if row.openvino else 'no'])} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
