"""The job file: one tree of options, the same names in YAML, in ``--set`` and in the code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from kosbert_ray.corpus.fragments import MAX_BYTES, MAX_ROWS, Limits
from kosbert_ray.corpus.lines import LineOptions
from kosbert_ray.corpus.listing import Format
from kosbert_ray.corpus.text import Normalization, RowText
from kosbert_ray.corpus.types import parse_type
from kosbert_ray.encoder.chunks import Splitter
from kosbert_ray.encoder.long_text import Policy
from kosbert_ray.encoder.options import Device, Engine, Precision
from kosbert_ray.errors import UsageError
from kosbert_ray.settings import Section, load_settings, shown_value
from kosbert_ray.shards.vector_types import VectorType
from kosbert_ray.storage import StorageOptions
from kosbert_ray.units import parse_bytes

OnBadRow = Literal["reject", "fail", "null_vector"]
SECRETS = ("access_key_id", "secret_access_key", "session_token")
PRIVATE: Any = {"storage": set(SECRETS), "ray": {"runtime_env"}, "on_finish": True}  # may hold secrets
# Which chunk of its text a row is, and the chunk's place in the text, in Unicode code points.
CHUNK_COLUMNS = {"chunk": "int32", "chunk_start": "int64", "chunk_end": "int64"}
CHUNK_TEXT = "chunk_text"
# Options of earlier versions: job files and stored jobs may still have them.
RETIRED = {"model.allow_pickle": "is no longer needed"}


def _path(value: Any) -> Any:
    """A path object is its path, and ``~`` a home folder, as a shell has it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _share_or_number(value: Any) -> Any:
    """``0.01`` is a share of the rows, ``100`` a number of them."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value < 0
        or (isinstance(value, float) and value > 1)
    ):
        raise ValueError(f"{shown_value(value)} is neither a share from 0.0 to 1.0 nor a whole number of rows")
    return value


def _names(value: Any) -> Any:
    """``id,title`` and ``[id, title]`` are the same list."""
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Address = Annotated[str, BeforeValidator(_path)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class ModelConfig(Section):
    """Which model, and how it takes its texts."""

    name: Address = "jhgan/ko-sbert-sts"
    revision: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    max_seq_length: int | None = Field(default=None, gt=0)
    truncate_dim: int | None = Field(default=None, gt=0)
    allow_remote_code: bool = False


class InputConfig(Section):
    """What is read. ``text`` names the text column, or joins several (``"{title}\\n{body}"``); ``keep`` is carried through.

    ``normalize`` makes texts alike before they are embedded: "html", "nfc", "whitespace" (see ``RowText``).
    """

    path: Address = ""
    format: Format | None = None
    text: str = "text"
    keep: Names = ()
    normalize: Annotated[tuple[Normalization, ...], BeforeValidator(_names)] = ()
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quoting: Literal["minimal", "none"] | None = None
    newlines_in_values: bool = False
    columns: Names = ()
    encoding: str = "utf-8"
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    null_values: Names = ()
    types: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> InputConfig:
        for name in self.keep:
            if name.startswith("__index_level_"):
                raise ValueError(
                    f"keep: {name!r} is the index of a pandas DataFrame; name it before writing (df.rename_axis('id'))"
                )
            if name.startswith("__"):
                raise ValueError(f"keep: {name!r} starts with two underscores, which is reserved")
        if len(set(self.keep)) < len(self.keep):
            raise ValueError("keep: a column is named twice")
        self.row_text().columns  # noqa: B018 (a template that is none raises)
        for name, kind in self.types.items():
            if name not in self.keep:
                raise ValueError(f"types: {name!r} is not among input.keep")
            try:
                parse_type(kind)
            except UsageError as error:
                raise ValueError(f"types.{name}: {error}") from error
        return self

    def row_text(self) -> RowText:
        """How a row's text is made; raises UsageError if the template is none."""
        return RowText(self.text, tuple(sorted(set(self.normalize))))

    def line_options(self) -> LineOptions:
        """How line formats are read."""
        return LineOptions(
            self.delimiter,
            self.quoting,
            self.newlines_in_values,
            self.columns,
            self.encoding,
            self.escape,
            self.null_values,
        )

    def column_types(self) -> dict[str, pa.DataType]:
        """The types that the job gives columns to keep, whatever the files say."""
        return {name: parse_type(kind) for name, kind in self.types.items()}


class OutputConfig(Section):
    """What is written: the folder, how vectors are stored in it, and what becomes of those whose input file is gone.

    Of several ``dtype`` the first is in ``column``, and each other in ``<column>_<dtype>``.
    """

    path: Address = ""
    column: str = "embedding"
    dtype: Annotated[tuple[VectorType, ...], BeforeValidator(_names), Field(min_length=1)] = ("float32",)
    list_type: Literal["list", "fixed_size_list"] = "list"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    removed_inputs: Literal["keep", "delete"] = "keep"

    @model_validator(mode="after")
    def _check(self) -> OutputConfig:
        if len(set(self.dtype)) < len(self.dtype):
            raise ValueError("dtype: a type is named twice")
        return self

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of vectors."""
        return (self.column, *(f"{self.column}_{dtype}" for dtype in self.dtype[1:]))


class SliceConfig(Section):
    """The unit of work and of commit. Smaller slices commit sooner and lose less; larger ones make fewer files."""

    max_rows: int = Field(default=MAX_ROWS, gt=0)
    max_bytes: Size = MAX_BYTES

    def limits(self) -> Limits:
        """The cut."""
        return Limits(self.max_rows, self.max_bytes)


class EncoderConfig(Section):
    """How vectors are computed. ``actors`` is a number or a range ``[min, max]``; None is as many as fit the cluster."""

    precision: Precision = "auto"
    device: Device = "auto"
    actors: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    threads: int | None = Field(default=None, gt=0)
    token_budget: int | None = Field(default=None, gt=0)
    engine: Engine = "torch"
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError("actors: the minimum is above the maximum")
        return self


class ChunkConfig(Section):
    """How a long text is cut, for ``long_text`` mean and chunk.

    ``size`` is the most tokens of a chunk, special ones included (None: as many as the model takes), ``overlap`` how many
    of them may stand in the chunk before (None: an eighth). ``splitter`` finds the places: "words" cuts between words,
    "kiwi" between sentences (``pip install 'kosbert-ray[kiwi]'``). ``text`` writes the chunk's text, too.
    """

    size: int | None = Field(default=None, gt=0)
    overlap: int | None = Field(default=None, ge=0)
    splitter: Splitter = "words"
    text: bool = False


class StorageConfig(Section):
    """How to reach object stores; what is left out comes from the usual AWS variables and files."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    retries: int = Field(default=8, ge=0)
    timeout: float = Field(default=60.0, gt=0)
    retry_seconds: float = Field(default=600.0, ge=0)
    requester_pays: bool = False
    server_side_encryption: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError("credentials do not belong in an address; use the AWS variables or storage.access_key_id")
        return value

    def options(self, patient: bool = False) -> StorageOptions:
        """The same, with the secrets revealed, for those who open the store.

        Args:
            patient: whether to outlast the store's outages, as a run that is under way does; else they are told at once.
        """
        return StorageOptions(
            endpoint_url=self.endpoint_url,
            region=self.region,
            profile=self.profile,
            anonymous=self.anonymous,
            access_key_id=_reveal(self.access_key_id),
            secret_access_key=_reveal(self.secret_access_key),
            session_token=_reveal(self.session_token),
            retries=self.retries,
            timeout=self.timeout,
            retry_seconds=self.retry_seconds if patient else 0.0,
            requester_pays=self.requester_pays,
            server_side_encryption=self.server_side_encryption,
            sse_kms_key_id=self.sse_kms_key_id,
        )


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


class RayConfig(Section):
    """The cluster: ``address`` of a running one, or None for ``RAY_ADDRESS`` and else a local one of this run's own.

    ``runtime_env`` is Ray's: ``env_vars``, ``pip``, ``image_uri`` and so on, for all processes of the job.
    """

    address: str | None = None
    runtime_env: dict[str, Any] = Field(default_factory=dict)


class ProfileConfig(Section):
    """Hardware to reckon with: what one device encodes in a second, how many there are, the price of one for an hour."""

    tokens_per_second: float = Field(gt=0)
    devices: int = Field(default=1, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0)


class PlanConfig(Section):
    """What ``plan`` reckons with: how many slices it looks at, hardware by name, and the store's prices.

    ``storage_price`` is for a GB (10^9 bytes) and month, ``put_price`` and ``get_price`` are for 1,000 requests.
    """

    slices: int = Field(default=32, gt=0)
    profiles: dict[str, ProfileConfig] = Field(default_factory=dict)
    storage_price: float | None = Field(default=None, ge=0)
    put_price: float | None = Field(default=None, ge=0)
    get_price: float | None = Field(default=None, ge=0)


class JobConfig(Section):
    """A whole job.

    ``dedup`` is where a text that stands several times is embedded once: in each slice, or in the whole corpus, which takes
    a pass over it first.
    ``long_text`` is what becomes of texts longer than the model takes: cut off ("truncate"), the mean of their chunks'
    vectors ("mean"), or a row for each chunk ("chunk"), with the columns ``CHUNK_COLUMNS``.
    ``max_rejected`` is how many rows may be rejected before the run counts as not done: a share if it has a point
    (``0.01``), a number of rows if it has none (``100``). ``stall_timeout`` is in seconds. ``log_format`` is that of the
    lines on standard error. ``on_finish`` is a command for the shell or an http(s) address, told of the run's end.
    """

    model: ModelConfig = ModelConfig()
    input: InputConfig = InputConfig()
    output: OutputConfig = OutputConfig()
    slice: SliceConfig = SliceConfig()
    encoder: EncoderConfig = EncoderConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
    plan: PlanConfig = PlanConfig()
    long_text: Policy = "truncate"
    chunk: ChunkConfig = ChunkConfig()
    dedup: Literal["slice", "corpus"] = "slice"
    on_bad_row: OnBadRow = "reject"
    max_rejected: Annotated[int | float, BeforeValidator(_share_or_number)] = 0.01
    stall_timeout: float = Field(default=300.0, gt=0)
    log_format: Literal["text", "json"] = "text"
    on_finish: str = ""

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        if both := {*self.output.columns()} & {*self.input.keep}:
            raise ValueError(f"output.column: {min(both)!r} is also among input.keep; choose another name")
        if self.long_text == "truncate" and self.chunk != ChunkConfig():
            raise ValueError("chunk: long texts are cut off unless long_text is mean or chunk")
        if self.long_text != "chunk" and self.chunk.text:
            raise ValueError("chunk.text: there is a text for each chunk only where long_text is chunk")
        taken = {*self.input.keep, *self.output.columns()} & {*self.chunk_columns()}
        if taken:
            raise ValueError(f"long_text: chunk writes a column {min(taken)!r} of its own; keep it under another name")
        return self

    def chunk_columns(self) -> dict[str, str]:
        """Names and Arrow types of the columns that say which chunk of its text a row is."""
        if self.long_text != "chunk":
            return {}
        return CHUNK_COLUMNS | ({CHUNK_TEXT: "string"} if self.chunk.text else {})

    def columns(self) -> tuple[str, ...]:
        """Names of an output's columns beside its vectors'."""
        return (*self.input.keep, *self.chunk_columns())

    def rejected_allowed(self, rows: float) -> float:
        """How many of ``rows`` may be rejected."""
        return self.max_rejected if isinstance(self.max_rejected, int) else self.max_rejected * rows

    def public(self) -> dict[str, Any]:
        """The config as plain values without its secrets, for job.json."""
        return self.model_dump(mode="json", exclude=PRIVATE)


def load_config(
    source: str | Mapping[str, Any] | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> JobConfig:
    """The job: a tree of defaults, a YAML file or its tree, ``--set`` settings and options of the command line, each over
    the one before.

    Raises:
        UsageError: the file cannot be read, or an option is unknown or wrong.
    """
    return load_settings(JobConfig, source, settings, overrides, defaults, RETIRED)
