"""Fingerprints: two runs are the same job if everything that affects their vectors or schema is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from kosbert_ray.settings import set_argument

# The option that sets each field, for error messages.
OPTIONS = {
    "weights": "model.name",
    "tokenizer": "model.name",
    "pooling": "model.pooling",
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
    "vectors": "output.vectors",
    "sparse": "model.name",
    "sparse_dimension": "model.name",
    "sparse_dtype": "output.sparse_dtype",
    "sparse_top_k": "output.sparse_top_k",
    "sparse_threshold": "output.sparse_threshold",
    "multi_vector": "model.name",
    "multi_vector_dimension": "model.name",
    "multi_vector_dtype": "output.multi_vector_dtype",
    "token_pooling": "output.token_pooling",
    "head_weights": "model.name",
}
# Fields whose option takes the same value, so that a message can suggest it.
SETTABLE = (
    "max_seq_length",
    "prompt",
    "pooling",
    "precision",
    "dtype",
    "list_type",
    "column",
    "text",
    "normalize",
    "on_bad_row",
    "vectors",
    "sparse_dtype",
    "sparse_top_k",
    "sparse_threshold",
    "multi_vector_dtype",
    "token_pooling",
)
# A difference in the first field explains one in the second.
EXPLAINS = {"dimension": "head", "weights": "pooling"}
# Limits on slices. They may differ within a job: each file keeps the limits it was first cut with.
CUT_FIELDS = ("max_rows", "max_bytes")


@dataclass(frozen=True)
class Difference:
    """A field that differs between an output's job and this one, with both values as JSON."""

    field: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        option = OPTIONS.get(self.field, self.field)
        theirs, ours = (_short(self._value(value)) for value in (self.theirs, self.ours))
        return f"{option} is {theirs} in the output but {ours} in this job"

    @property
    def remedy(self) -> str:
        """Returns the setting that makes this job match the output; empty if no single option does."""
        if self.field not in SETTABLE:
            return ""
        if self.field == "prompt":  # may contain spaces and what YAML reads as a mapping
            return set_argument(OPTIONS[self.field], str(self.theirs))
        value = self._value(self.theirs)
        value = ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else value
        return f"--set {OPTIONS[self.field]}={value}"

    def _value(self, value: Any) -> Any:
        """Returns the option's value for a value of the fingerprint, which records no limit as 0."""
        return None if self.field == "sparse_top_k" and value == 0 else value


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a job. It is stored in ``_kosbert/job.json``, and its digest is part of every footer and shard name.

    Fields without a default date from version 0.1.0. Any new field needs a default that keeps the old behaviour. At its
    default a field is left out of the digest, so the digests of existing jobs never change.

    Attributes:
        weights, tokenizer: sha256 of the model's files.
        precision: as requested; "auto" depends on the hardware.
        ranges: smallest and largest values per dimension for int8; empty for other types.
        keep: columns carried over from the input, each as ``name: type``.
        on_bad_row: "null_vector" or "reject"; "fail" counts as "reject", since its shards are the same.
        vectors: the kinds of vectors, in the order of their columns.
        sparse, multi_vector: how the model makes them.
        sparse_top_k: 0 for all values.
        head_weights: sha256 of weights that only these kinds use, where they are not among ``weights``.
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
    vectors: tuple[str, ...] = ("dense",)
    sparse: tuple[str, ...] = ()
    sparse_dimension: int = 0
    sparse_dtype: str = "float32"
    sparse_top_k: int = 0
    sparse_threshold: float = 0.0
    multi_vector: tuple[str, ...] = ()
    multi_vector_dimension: int = 0
    multi_vector_dtype: str = "float32"
    token_pooling: float = 1.0
    head_weights: str = ""

    def described(self) -> dict[str, Any]:
        """Returns the fields as stored in job.json; newer ones only if they are not at their default."""
        added = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}

    @property
    def sha256(self) -> str:
        """Returns the digest for a new job. An existing output always keeps the digest in its job.json."""
        return digest_of(self.described())

    def differences(self, other: Mapping[str, Any], same_weights: Collection[str] = ()) -> list[Difference]:
        """Compares with a fingerprint from job.json; returns the fields that make it a different job.

        Args:
            other: the fields stored in job.json.
            same_weights: other digests of this model's weights (version 0.1.0 hashed all ``*.bin`` files together).
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
                continue  # the first run sets the types; values that do not fit them fail with a message
            if name == "long_text" and _without_version(theirs) == _without_version(ours[name]):
                continue  # the version of the sentence splitter may differ
            found.append(Difference(name, theirs, ours[name]))
        return found


def digest_of(described: Mapping[str, Any]) -> str:
    """Returns the digest of a fingerprint's fields as stored in job.json. It must never change between versions."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def mismatch(differences: list[Difference]) -> str:
    """Describes the differences between two jobs and how to join the other one, for an error message."""
    seen: dict[str, Difference] = {}
    explained = {EXPLAINS.get(difference.field) for difference in differences}
    differences = [difference for difference in differences if difference.field not in explained]
    for difference in differences:  # one line per option: a model's weights and tokenizer differ together
        seen.setdefault(OPTIONS.get(difference.field, difference.field), difference)
    described = "; ".join(map(str, seen.values()))
    remedies = [difference.remedy for difference in seen.values()]
    add = f"add {' '.join(remedies)}, or " if all(remedies) else ""
    return f"{described}; {add}choose another output"


def _names(keep: Any) -> list[str]:
    return [str(column).partition(": ")[0] for column in keep or ()]


def _without_version(long_text: Any) -> str:
    """Strips the version of the sentence splitter from chunk settings."""
    head, kiwi, _ = str(long_text).partition("kiwipiepy ")
    return head + kiwi


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…{text[-4:]}"
