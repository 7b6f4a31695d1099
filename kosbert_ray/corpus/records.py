"""Lines become rows: JSON objects, CSV records or bare text, each with its address and, if it cannot be used, the reason.

A record that cannot be used is not an error but a row with a ``__reason``: it travels with its slice and ends in
``_kosbert/rejected/``. Only what makes the rest of the file unreadable raises. Blank lines are not rows in any format.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from kosbert_ray.corpus.lines import MAX_LINE_BYTES, LineOptions, Lines, first_lines
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.rows import Row, rows_from_values
from kosbert_ray.corpus.text import RowText
from kosbert_ray.errors import InputError
from kosbert_ray.storage import Storage

HEADER_LINES = 100  # a header with quoted newlines may take a few


def parse(
    blocks: Iterable[Lines], file: InputFile, source: RowText, keep: pa.Schema, options: LineOptions, header: list[str]
) -> Iterator[tuple[pa.Table, int]]:
    """Row tables, about one a block of lines, each with the bytes of the file that were read for it.

    Args:
        blocks: whole lines, in the file's order.
        file: what they come from; its format says how to parse them.
        source: how a row's text is made.
        keep: the columns to carry through, with their types.
        options: how line formats are read.
        header: the column names of a CSV or TSV file.

    Raises:
        InputError: a quoted CSV value runs over the end of the fragment.
    """
    groups: Iterator[tuple[Iterable[Row], int]]
    if file.format in ("csv", "tsv"):
        groups = _csv_rows(blocks, file, options, header)
    elif file.format == "jsonl":
        groups = ((_json_rows(block, options), block.read) for block in blocks)
    else:
        groups = ((_text_rows(block, source.columns[0], options), block.read) for block in blocks)
    for rows, read in groups:
        yield rows_from_values(rows, source, keep), read


def csv_header(storage: Storage, file: InputFile, options: LineOptions) -> list[str]:
    """The column names of a CSV or TSV file: its first record, or the names given in the options."""
    if options.columns:
        return list(options.columns)
    lines = first_lines(storage, file, HEADER_LINES)
    text = [_decode(line, options)[0] + "\n" for line in lines]
    if text:
        text[0] = text[0].removeprefix("\ufeff")
    try:
        return next(_csv_reader(iter(text), file, options), [])
    except csv.Error as error:
        raise InputError(f"{storage.url(file.name)}: bad CSV header ({error})") from error


def json_objects(lines: list[bytes], options: LineOptions) -> list[dict[str, Any]]:
    """The good objects among the first lines of a JSONL file."""
    block = Lines(lines, 0, "line", 0)
    return [values for _, values, reason in _json_rows(block, options) if reason is None]


def _numbered(block: Lines) -> Iterator[tuple[int, bytes]]:
    position = block.position
    for line in block.lines:
        yield position, line
        position += 1 if block.unit == "line" else len(line) + 1


def _decode(line: bytes, options: LineOptions) -> tuple[str, str | None]:
    try:
        return line.decode(options.encoding), None
    except UnicodeDecodeError as error:
        return line.decode(options.encoding, "surrogateescape"), f"invalid {options.encoding} at its byte {error.start}"


def _json_rows(block: Lines, options: LineOptions) -> Iterator[Row]:
    for position, line in _numbered(block):
        content, reason = _decode(line, options)
        if position == 0:
            content = content.removeprefix("\ufeff")
        if not content.strip():
            continue
        values: Any = {}
        if reason is None:
            try:
                values = json.loads(content)
            except (ValueError, RecursionError) as error:
                reason = f"bad JSON ({error})"
            else:
                if not isinstance(values, dict):
                    reason, values = f"a JSON {type(values).__name__}, not an object", {}
        yield position, values, reason


def _text_rows(block: Lines, text: str, options: LineOptions) -> Iterator[Row]:
    for position, line in _numbered(block):
        content, reason = _decode(line.removesuffix(b"\r"), options)
        if position == 0:
            content = content.removeprefix("\ufeff")
        if content.strip():
            yield position, {text: content}, reason


def _csv_reader(lines: Iterable[str], file: InputFile, options: LineOptions) -> Any:
    csv.field_size_limit(MAX_LINE_BYTES)
    return csv.reader(
        lines, delimiter=options.csv_delimiter(file.format), quoting=options.csv_quoting(file.format), strict=True
    )


def _csv_rows(
    blocks: Iterable[Lines], file: InputFile, options: LineOptions, header: list[str]
) -> Iterator[tuple[Iterable[Row], int]]:
    """Records may span lines, and so blocks: one reader pulls lines from all of them."""
    positions: list[int] = []  # of the lines fed since the last yield
    broken: dict[int, str] = {}  # positions of the lines that are not in the encoding
    read = 0

    def feed() -> Iterator[str]:
        nonlocal read
        for block in blocks:
            read += block.read
            for position, line in _numbered(block):
                content, reason = _decode(line, options)
                if position == 0:
                    content = content.removeprefix("\ufeff")
                if reason:
                    broken[position] = reason
                positions.append(position)
                yield content + "\n"

    reader = _csv_reader(feed(), file, options)
    skip_header = not options.columns
    rows: list[Row] = []
    consumed = 0  # lines before the current record
    dropped = 0  # lines whose positions are forgotten
    for number in itertools.count():
        reason = None
        record: list[str] = []
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise InputError(
                    f"{file.name}: a quoted value that begins near {positions[consumed - dropped]} spans lines beyond "
                    "what is read together; set input.newlines_in_values=true, or input.quoting=none"
                ) from error
            reason = f"bad CSV ({error})"
        lines = positions[consumed - dropped : reader.line_num - dropped]
        consumed = reader.line_num
        if lines[0] == 0 and skip_header:
            continue
        if record or reason:
            for position in lines:
                reason = broken.pop(position, None) or reason
            if reason is None and len(record) != len(header):
                reason = f"{len(record)} values, but {len(header)} columns"
            rows.append((lines[0], dict(zip(header, record, strict=False)), reason))
        if number % 4096 == 4095:
            yield rows, read
            rows, read = [], 0
            del positions[: consumed - dropped]
            dropped = consumed
    yield rows, read
