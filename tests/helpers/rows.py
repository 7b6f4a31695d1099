"""Reads folders through the same path as a job: list, inspect, plan, read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.line_based import LineFormat
from kosbert_ray.corpus.formats.table import format_of
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.lines import Content
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import REASON, TEXT
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.corpus.text import RowText


def rows(
    folder: Path,
    text: str | RowText = "text",
    keep: Sequence[str] = (),
    limits: Limits = Limits(),
    options: LineOptions = LineOptions(),
) -> list[dict[str, Any]]:
    """All rows of a folder."""
    corpus, columns = inspect(list_corpus(str(folder)), text, keep, options)
    reader = FragmentReader(corpus.storage, columns, options, limits)
    fragments = plan(corpus.files, limits, options.newlines_in_values)
    return [row for fragment in fragments for _, table in reader.slices(fragment) for row in table.to_pylist()]


def failures(
    folder: Path, text: str | RowText = "text", keep: Sequence[str] = (), options: LineOptions = LineOptions()
) -> list[str]:
    """The reasons why files of a folder cannot be embedded."""
    return [file.reason for file in inspect(list_corpus(str(folder)), text, keep, options)[0].failed]


def notices(
    folder: Path, text: str | RowText = "text", keep: Sequence[str] = (), options: LineOptions = LineOptions()
) -> str:
    """The notices about a folder, before it is read."""
    return "\n".join(inspect(list_corpus(str(folder)), text, keep, options)[0].notices)


def good(found: list[dict[str, Any]], column: str = TEXT) -> list[Any]:
    """The values of a column in the rows that are not rejected."""
    return [row[column] for row in found if row[REASON] is None]


def reasons(found: list[dict[str, Any]]) -> list[str]:
    """The reasons of the rejected rows."""
    return [row[REASON] for row in found if row[REASON]]


def content_of(file: InputFile, options: LineOptions = LineOptions()) -> Content:
    """What a file of a line format should contain."""
    implementation = format_of(file)
    assert isinstance(implementation, LineFormat)
    return implementation.content(options)
