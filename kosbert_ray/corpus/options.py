"""Options of the input: which files are read, how, and into which slices they are cut."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kosbert_ray.corpus.formats.table import FormatName
from kosbert_ray.errors import UsageError
from kosbert_ray.settings import Address, Names, Section, Size, split_names

Normalization = Literal["html", "nfc", "whitespace"]
MAX_ROWS = 16_384
MAX_BYTES = 32 * 2**20
TARGET_ROWS = 1024  # a slice has at least so many rows, whatever its target
LATER = ("escape", "null_values")  # options of lines that came after 0.1.0


class _FileOptions(Section):
    path: Address = Field(
        default="", description="file, folder, glob, s3:// URL (experimental: gs://, az://) or hub://OWNER/NAME"
    )
    format: FormatName | None = Field(default=None, description="format of the files; by default, from their extensions")
    text: str = Field(default="text", description='text column, or a template that joins several: "{title}\\n{body}"')
    keep: Names = Field(
        default=(), description="columns to copy to the output, including keys of partitioned folders (year=2026/)"
    )
    normalize: Annotated[tuple[Normalization, ...], BeforeValidator(split_names)] = Field(
        default=(), description="clean up texts before they are embedded"
    )
    types: dict[str, str] = Field(
        default_factory=dict, description="types of kept columns, where the files leave them open: {id: string}"
    )


class LineOptions(Section):
    """Options of line formats."""

    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="character between values; by default a comma, in TSV a tab",
    )
    quoting: Literal["minimal", "none"] | None = Field(
        default=None, description="quoting of values; by default minimal in CSV, none in TSV"
    )
    newlines_in_values: bool = Field(
        default=False, description="quoted CSV values may contain newlines; each file is then read in one pass"
    )
    columns: Names = Field(default=(), description="column names of CSV and TSV files without a header line")
    encoding: str = Field(default="utf-8", description="text encoding of line formats, such as cp949")
    escape: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="character that escapes a quote in a CSV or TSV value, such as \\",
    )
    null_values: Names = Field(default=(), description="values that mean null in CSV and TSV, such as \\N")

    @field_validator("encoding")
    @classmethod
    def _usable(cls, value: str) -> str:
        try:
            usable = _decodes_line_by_line(_codec(value))
        except LookupError:
            raise UsageError(f"input.encoding: no such encoding {value!r}") from None
        if not usable:
            raise UsageError(f"input.encoding: {value} cannot be split at line ends; convert the files to utf-8")
        return value

    def recorded(self) -> str:
        """The options as the fingerprint records them: those that came after 0.1.0 only where they are set."""
        values = {name: getattr(self, name) for name in LineOptions.model_fields}
        shown = [
            f"{name}={value!r}"
            for name, value in values.items()
            if name not in LATER or value != LineOptions.model_fields[name].default
        ]
        return f"LineOptions({', '.join(shown)})"

    @property
    def codec(self) -> str:
        """The codec of a line. A byte order mark is removed in any case, so utf-8-sig is utf-8."""
        return _codec(self.encoding)


class InputOptions(LineOptions, _FileOptions):
    """The files that are read, and the columns taken from them."""

    @model_validator(mode="after")
    def _check(self) -> InputOptions:
        for name in self.keep:
            if name.startswith("__index_level_"):
                raise ValueError(
                    f"keep: {name!r} is the index of a pandas DataFrame; name it before writing (df.rename_axis('id'))"
                )
            if name.startswith("__"):
                raise ValueError(f"keep: {name!r} starts with two underscores, which is reserved")
        if len(set(self.keep)) < len(self.keep):
            raise ValueError("keep: a column is named twice")
        if "{" in self.text or "}" in self.text:
            from kosbert_ray.corpus.text import RowText  # imported late: loads pyarrow

            RowText.of(self).columns  # noqa: B018 (raises UsageError for an invalid template)
        for name, kind in self.types.items():
            from kosbert_ray.corpus.types import parse_type  # imported late: loads pyarrow

            if name not in self.keep:
                raise ValueError(f"types: {name!r} is not among input.keep")
            try:
                parse_type(kind)
            except UsageError as error:
                raise ValueError(f"types.{name}: {error}") from error
        return self

    def line_options(self) -> LineOptions:
        """The options of line formats alone: small and hashable, for the workers that read files."""
        return LineOptions.model_construct(**{name: getattr(self, name) for name in LineOptions.model_fields})


class SliceOptions(Section):
    """Size of a slice, the unit of work and of commit. Small slices lose less in a crash, large ones make fewer files."""

    max_rows: int = Field(default=MAX_ROWS, gt=0, description="maximum rows in a slice")
    max_bytes: Size = Field(default=MAX_BYTES, description="maximum bytes of text in a slice")
    target_bytes: Size | None = Field(
        default=None,
        description="bytes of text at which a slice of at least 1,024 rows ends; by default chosen from the model and the "
        "size of the corpus, unless another option of slices is set",
    )


@cache
def _codec(encoding: str) -> str:
    return "utf-8" if encoding.lower().replace("_", "-") in ("utf-8-sig", "utf8-sig") else encoding


def _decodes_line_by_line(codec: str) -> bool:
    """True unless decoding a line needs the lines before it, as in wide and stateful codecs."""
    if '\n",'.encode(codec) != b'\n",':
        return False
    try:
        text = '한글"\n,하나\n한글'
        return [line.decode(codec) for line in text.encode(codec).split(b"\n")] == text.split("\n")
    except UnicodeEncodeError:  # it has no Hangul
        return True
    except UnicodeDecodeError:
        return False
