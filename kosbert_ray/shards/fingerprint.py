"""Decides whether two runs are the same job: everything that changes a vector or the schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

# The option a user sets for each field, for error messages.
OPTIONS = {
    "weights": "model.name",
    "tokenizer": "model.name",
    "pooling": "model.name",
    "head": "model.name",
    "do_lower_case": "model.name",
    "max_seq_length": "model.max_seq_length",
    "prompt": "model.prompt",
    "long_text": "long_text",
    "precision": "encoder.precision",
    "dtype": "output.dtype",
    "ranges": "output.dtype",
    "list_type": "output.list_type",
    "dimension": "model.truncate_dim",
    "column": "output.column",
    "text": "input.text",
    "normalize": "input.normalize",
    "keep": "input.keep",
    "input_format": "input.delimiter, input.quoting, …",
    "on_bad_row": "on_bad_row",
}
# Options whose value is the field's value, so that a message can name the setting to add.
SETTABLE = ("max_seq_length", "prompt", "precision", "dtype", "list_type", "column", "text", "normalize", "on_bad_row")
# Limits of the cut: a file keeps those it was begun under, so another job may differ in them.
CUT_FIELDS = ("max_rows", "max_bytes")


@dataclass(frozen=True)
class Difference:
    """A field in which two jobs differ, with both values as JSON has them."""

    field: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{OPTIONS.get(self.field, self.field)} is {_short(self.theirs)} there and {_short(self.ours)} here"

    @property
    def remedy(self) -> str:
        """The setting that makes a run join the output's job; empty if no single option does."""
        if self.field not in SETTABLE:
            return ""
        value = ",".join(map(str, self.theirs)) if isinstance(self.theirs, list) else self.theirs
        return f"--set {OPTIONS[self.field]}={value}"


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a job. Stored in ``_kosbert/job.json``; its digest names the job in every footer and shard name.

    ``weights`` and ``tokenizer`` are sha256 of the model's files; ``keep`` is ``name: type`` of the columns carried
    through; ``precision`` is the one asked for ("auto" may resolve to another on other hardware); ``ranges`` are int8's;
    ``on_bad_row`` is "null_vector" or "reject", whose shards are those of "fail".

    The fields without a default are those of version 0.1.0. A field that is added needs a default that means "as before":
    at its default it is left out of the digest, so that the digests of existing jobs do not change.
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

    def described(self) -> dict[str, Any]:
        """The fields as job.json stores them: later ones only where they are not at their default."""
        added = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}

    @property
    def sha256(self) -> str:
        """Digest of a new job. An existing output's digest is the one in its job.json, whatever this gives."""
        return digest_of(self.described())

    def differences(self, other: Mapping[str, Any], same_weights: Collection[str] = ()) -> list[Difference]:
        """The fields in which the fingerprint ``other``, as read from job.json, makes it another job.

        Args:
            other: the stored fields.
            same_weights: other digests of this model's weight files (0.1.0 hashed all ``*.bin`` together).
        """
        ours = json.loads(json.dumps(asdict(self)))
        found = []
        for field in fields(self):
            name = field.name
            default = None if field.default is MISSING else json.loads(json.dumps(field.default))
            theirs = other.get(name, default)
            if name in CUT_FIELDS or theirs == ours[name] or (name == "weights" and theirs in same_weights):
                continue
            if name == "keep" and _names(theirs) == _names(ours[name]):
                continue  # types are settled by the first run; what does not fit them fails by name
            if name == "long_text" and _without_version(theirs) == _without_version(ours[name]):
                continue  # another version of the splitter finds the sentences
            found.append(Difference(name, theirs, ours[name]))
        return found


def digest_of(described: Mapping[str, Any]) -> str:
    """Digest of a fingerprint's fields as job.json stores them; every version computes it the same way."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def mismatch(differences: list[Difference]) -> str:
    """What differs between two jobs and how to join the other, as a part of an error line."""
    seen: dict[str, Difference] = {}
    if any(difference.field == "dimension" for difference in differences):  # which says why the head differs
        differences = [difference for difference in differences if difference.field != "head"]
    for difference in differences:  # one model: its weights, tokenizer and pooling differ together
        seen.setdefault(OPTIONS.get(difference.field, difference.field), difference)
    said = "; ".join(map(str, seen.values()))
    remedies = [difference.remedy for difference in seen.values()]
    add = f"add {' '.join(remedies)}, or " if all(remedies) else ""
    return f"{said}; {add}choose another output"


def _names(keep: Any) -> list[str]:
    return [str(column).partition(": ")[0] for column in keep or ()]


def _without_version(long_text: Any) -> str:
    """Chunk settings without the version of the sentence splitter."""
    head, kiwi, _ = str(long_text).partition("kiwipiepy ")
    return head + kiwi


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…{text[-4:]}"
