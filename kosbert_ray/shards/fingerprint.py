"""What makes two runs the same job: everything that changes a vector, the schema, or how the corpus is cut."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fingerprint:
    """Stands in ``_kosbert/job.json`` and, as its digest, in every shard's footer and every shard's name.

    ``weights`` and ``tokenizer`` are sha256 of the model's files; ``keep`` is ``name: type`` of the columns carried
    through; ``precision`` is the one asked for ("auto" may come to another on other hardware); ``ranges`` are int8's;
    ``on_bad_row`` is "null_vector" or "reject", whose shards are those of "fail".
    """

    weights: str
    tokenizer: str
    pooling: tuple[str, ...]
    head: tuple[str, ...]
    max_seq_length: int
    do_lower_case: bool
    prompt: str
    long_text: str
    precision: str
    dtype: tuple[str, ...]
    ranges: tuple[tuple[float, ...], ...]
    list_type: str
    dimension: int
    column: str
    text: str
    normalize: tuple[str, ...]
    keep: tuple[str, ...]
    input_format: str
    on_bad_row: str
    max_rows: int
    max_bytes: int

    @property
    def sha256(self) -> str:
        """Digest of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: dict[str, Any]) -> list[str]:
        """``field: theirs → ours`` for each field in which the fingerprint ``other``, as read from JSON, differs."""
        ours = json.loads(json.dumps(asdict(self)))
        return [
            f"{name}: {_short(other.get(name))} → {_short(ours.get(name))}"
            for name in sorted(ours.keys() | other.keys())
            if ours.get(name) != other.get(name)
        ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…{text[-4:]}"
