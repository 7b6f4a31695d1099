"""The table of input formats.

Importing it loads no format and no library, so that listing and option checks stay fast. Formats never import it.
"""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal

from kosbert_ray.corpus.formats.base import Format, FormatInfo

if TYPE_CHECKING:
    from kosbert_ray.corpus.files import InputFile

PACKAGE = "kosbert_ray.corpus.formats"
FORMATS: dict[str, FormatInfo] = {
    info.name: info
    for info in (
        FormatInfo("parquet", (".parquet", ".pq"), f"{PACKAGE}.parquet:Parquet", lines=False),
        FormatInfo("arrow", (".arrow",), f"{PACKAGE}.arrow:Arrow", lines=False, splittable=False),
        FormatInfo("jsonl", (".jsonl", ".ndjson"), f"{PACKAGE}.jsonl:JsonLines"),
        FormatInfo("csv", (".csv",), f"{PACKAGE}.csv:Csv"),
        FormatInfo("tsv", (".tsv",), f"{PACKAGE}.csv:Tsv"),
        FormatInfo("text", (".txt", ".text"), f"{PACKAGE}.text:Text"),
    )
}

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]  # the choices of ``input.format``


def info_of(file: InputFile) -> FormatInfo:
    """The static part of a file's format."""
    return FORMATS[file.format]


def format_of(file: InputFile) -> Format:
    """The implementation of a file's format, imported on first use."""
    return _loaded(FORMATS[file.format])


@cache
def _loaded(info: FormatInfo) -> Format:
    implementation: Format = resolve_name(info.implementation)(info)
    return implementation


def format_of_suffix(suffix: str) -> str | None:
    """The name of the format whose files have this extension (lower case, with the dot)."""
    for name, info in FORMATS.items():
        if suffix in info.suffixes:
            return name
    return None
