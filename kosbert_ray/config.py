"""The job's options: the rooms' own sections under the names that YAML, ``--set`` and the code share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from kosbert_ray.corpus.options import InputOptions, SliceOptions
from kosbert_ray.encoder.options import ChunkOptions, EncoderOptions, LongTextPolicy
from kosbert_ray.logs import LogFormat
from kosbert_ray.model.options import ModelOptions
from kosbert_ray.planning.options import PlanOptions
from kosbert_ray.run.options import ExecutorName, RayOptions
from kosbert_ray.settings import (
    NUMBER_OR_TEXT,
    Address,
    InWords,
    Private,
    Seconds,
    Section,
    load_settings,
    shown_value,
    unrecorded,
)
from kosbert_ray.shards.options import OutputOptions
from kosbert_ray.storage.options import StorageOptions
from kosbert_ray.vectors.kinds import DENSE

OnBadRow = Literal["reject", "fail", "null_vector"]
# The columns of a chunk: its number within the text, and its place there in Unicode code points.
CHUNK_COLUMNS = {"chunk": "int32", "chunk_start": "int64", "chunk_end": "int64"}
CHUNK_TEXT = "chunk_text"
ADDRESS_COLUMNS = {"file": "string", "row": "int64", "byte_offset": "int64"}
TEXT_COLUMN = "text"
TEXT_HASH, HASH_TYPE = "text_hash", "fixed_size_binary[16]"
# Options of earlier versions, which job files and stored jobs may still have.
SHORT = {"model": "name", "input": "path", "output": "path"}  # model: NAME is short for model: {name: NAME}
RETIRED = {"model.allow_pickle": "is no longer needed"}


def _share_or_number(value: Any) -> Any:
    """``0.01`` and ``1%`` are shares of the rows, ``100`` is a number of rows."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*%\s*", value):
        value = float(value.strip().removesuffix("%")) / 100
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value < 0
        or (isinstance(value, float) and value > 1)
    ):
        raise ValueError(f"{shown_value(value)} is neither a share from 0.0 to 1.0 nor a whole number of rows")
    return value


class JobConfig(Section):
    """A job: the sections of all rooms, and the options of the job as a whole."""

    model: ModelOptions = ModelOptions()
    input: InputOptions = InputOptions()
    output: OutputOptions = OutputOptions()
    slice: SliceOptions = SliceOptions()
    encoder: EncoderOptions = EncoderOptions()
    storage: StorageOptions = StorageOptions()
    ray: RayOptions = RayOptions()
    plan: PlanOptions = PlanOptions()
    long_text: LongTextPolicy = Field(
        default="truncate",
        description="texts over the model's limit: cut off, average the vectors of their chunks, or write a row per chunk; "
        "late does so for texts over chunk.size, and pools each chunk from one encoding of as much text as the model takes",
    )
    chunk: ChunkOptions = ChunkOptions()
    dedup: Literal["slice", "corpus"] = Field(
        default="slice", description="embed duplicate texts once per slice, or once in the whole corpus"
    )
    on_bad_row: OnBadRow = Field(
        default="reject", description="rows that cannot be embedded: reject them, fail, or keep them with a null vector"
    )
    max_rejected: Annotated[
        int | float, BeforeValidator(_share_or_number), InWords("share or number of rows"), WithJsonSchema(NUMBER_OR_TEXT)
    ] = Field(default=0.01, description="rejected rows that the run tolerates: a share (0.01 or 1%) or a number (100)")
    executor: ExecutorName = Field(
        default="auto", description="run on Ray or in this process (local); by default local if there is little to do"
    )
    limit: int | None = Field(
        default=None,
        gt=0,
        description="end after whole slices with this many rows in all: a trial, which a run without it continues",
    )
    max_minutes: float | None = Field(
        default=None, gt=0, description="end after this time, with exit code 6; the next run continues"
    )
    reuse: Address = Field(
        default="", description="an older output of the same model and settings, whose vectors of unchanged texts are taken"
    )
    stall_timeout: Seconds = Field(
        default=300.0, gt=0, description="time without a commit before the run reports what it is waiting for"
    )
    log_format: LogFormat = Field(default="text", description="format of the lines on standard error")
    on_finish: Annotated[str, Private()] = Field(
        default="", description="shell command or http(s) address to notify when a run ends"
    )

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        if own := [kind for kind in self.output.vectors if kind != DENSE and kind in self.input.keep]:
            raise ValueError(
                f"output.vectors: writes a column {own[0]!r} of its own, which is also among input.keep; rename the "
                "column in the input, or leave it out"
            )
        if both := {*self.output.columns()} & {*self.input.keep}:
            raise ValueError(f"output.column: {min(both)!r} is also among input.keep; choose another name")
        if self.long_text == "truncate" and self.chunk != ChunkOptions():
            raise ValueError("chunk: long texts are cut off unless long_text is mean, chunk or late")
        if not self.chunked and self.chunk.text:
            raise ValueError("chunk.text: there is a text for each chunk only where long_text is chunk or late")
        if self.long_text == "late" and self.reuse:
            raise ValueError(
                "reuse: with long_text=late the vector of a chunk depends on the text around it; leave out --reuse"
            )
        if self.copied_text() in self.output.columns():
            raise ValueError(
                f"output.column: {TEXT_COLUMN!r} is the column of the texts; choose another name, or set output.text=false"
            )
        if both := {*self.input.keep, *self.output.columns()} & {*self.address_columns()}:
            raise ValueError(f"output.address: writes a column {min(both)!r} of its own; keep it under another name")
        if self.output.text_hash and TEXT_HASH in {*self.input.keep, *self.output.columns()}:
            raise ValueError(f"output.text_hash: writes a column {TEXT_HASH!r} of its own; keep it under another name")
        taken = {*self.input.keep, *self.output.columns()} & {*self.chunk_columns()}
        if taken:
            raise ValueError(
                f"long_text: {self.long_text} writes a column {min(taken)!r} of its own; keep it under another name"
            )
        return self

    @property
    def chunked(self) -> bool:
        """True if rows of the output are chunks of texts."""
        return self.long_text in ("chunk", "late")

    def chunk_columns(self) -> dict[str, str]:
        """Names and Arrow types of the columns that locate a chunk in its text."""
        if not self.chunked:
            return {}
        text = CHUNK_TEXT if self.chunk.text else self.copied_text()
        return CHUNK_COLUMNS | ({text: "string"} if text else {})

    def address_columns(self) -> dict[str, str]:
        """Names and Arrow types of the columns with the place of each row in the input."""
        return ADDRESS_COLUMNS if self.output.address else {}

    def copied_text(self) -> str | None:
        """Name of the column to which texts are copied; None if they are not, or if ``input.keep`` does it already."""
        kept = {TEXT_COLUMN, self.input.text} & {*self.input.keep}
        return TEXT_COLUMN if self.output.text and not kept and not self.chunk.text else None

    def row_text(self) -> str | None:
        """Name of the column to which whole texts are copied; None if there is none."""
        return None if self.chunked else self.copied_text()

    def chunk_text(self) -> str | None:
        """Name of the column with the text of each chunk; None if there is none."""
        return next((name for name in self.chunk_columns() if name not in CHUNK_COLUMNS), None)

    def copied_column(self) -> str | None:
        """Name of the column with the text of each row of the output, a chunk's where rows are chunks; None if there is
        none.
        """
        return self.chunk_text() or self.row_text()

    def made_columns(self) -> dict[str, str]:
        """Names and Arrow types of the columns that are made while texts are tokenized."""
        return self.chunk_columns() | ({TEXT_HASH: HASH_TYPE} if self.output.text_hash else {})

    def columns(self) -> tuple[str, ...]:
        """Names of an output's columns other than its vectors."""
        return (*self.input.keep, *filter(None, [self.row_text()]), *self.address_columns(), *self.made_columns())

    def rejected_allowed(self, rows: float) -> float:
        """Number of rows that may be rejected, out of ``rows``."""
        return self.max_rejected if isinstance(self.max_rejected, int) else self.max_rejected * rows

    def public(self, only_set: bool = False) -> dict[str, Any]:
        """The options as plain values for job.json, without secrets and private values.

        Args:
            only_set: leave out what is only a default.
        """
        return self.as_written(self.model_dump(mode="json", exclude=unrecorded(JobConfig), exclude_unset=only_set))


def job_schema() -> dict[str, Any]:
    """The JSON schema of job files, with the short forms that they may have: names for sections, texts for lists."""
    schema = JobConfig.model_json_schema()
    for section in schema["$defs"].values():
        for name, option in section.get("properties", {}).items():
            if option.get("type") == "array":
                section["properties"][name] = _or_text(option)
    for section in SHORT:
        schema["properties"][section] = _or_text(schema["properties"][section])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Job file of kosbert-ray"}


def _or_text(schema: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    return {"anyOf": [schema, {"type": "string"}], **about}


def load_config(
    source: str | Mapping[str, Any] | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    expand: bool = True,
) -> JobConfig:
    """Loads a job: a tree of defaults, then a YAML file or its tree, then ``--set`` and the command line; later ones win.

    Variables (``${NAME}``) in a file are replaced unless ``expand`` is false: for a job that runs elsewhere.

    Raises:
        UsageError: the file cannot be read, or an option is unknown or invalid.
    """
    return load_settings(JobConfig, source, settings, overrides, defaults, RETIRED, SHORT, expand)
