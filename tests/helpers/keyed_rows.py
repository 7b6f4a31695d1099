"""Input files whose rows have a key, by which they are found again in a database or a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def write(folder: Path, name: str, texts: Sequence[str | None], first: int = 0) -> None:
    """Writes a JSONL file of texts with keys from ``first`` on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"key": first + number, "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
