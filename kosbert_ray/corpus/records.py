"""Lines become rows: JSON objects, CSV records or bare text, each with its address and, if it cannot be used, the reason.

A record that cannot be used is not an error but a row with a ``__reason``: it travels with its slice and ends in
``_kosbert/rejected/``. Only what makes the rest of the file unreadable raises. Blank lines are not rows in any format.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kosbert_ray.corpus.lines import MAX_LINE_BYTES, LineOptions, Lines, first_lines
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.row_table import Row, rows_from_values
from kosbert_ray.corpus.text import RowText
from kosbert_ray.errors import InputError
from kosbert_ray.storage import Storage

HEADER_LINES = 100  # a header with quoted newlines may take a few
HEADER_AHEAD = 2**18  # bytes to fetch for it
GROUP_ROWS = 4096  # CSV records to hold at a time, or fewer of
GROUP_CHARACTERS = 16 * 2**20
SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # Excel's own first line
# A lone CR inside a value, while the csv module, which takes it for a line end, reads the line. No codec decodes to it.
CARRIAGE_RETURN = "\udc0d"
OTHER_CODECS = ("utf-8", "cp949")


@dataclass(frozen=True)
class Layout:
    """What the start of a CSV or TSV file says of its rows.

    ``names`` are the columns, ``header`` as the file spells them; lines before byte ``start`` (line ``start_line``) are no
    rows.
    """

    names: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    delimiter: str = ","
    start: int = 0
    start_line: int = 0
    in_file: bool = True  # whether the names are the file's own


def parse(
    blocks: Iterable[Lines], file: InputFile, source: RowText, keep: pa.Schema, options: LineOptions, layout: Layout
) -> Iterator[tuple[pa.Table, int]]:
    """Row tables, about one a block of lines, each with the bytes of the file that were read for it.

    Args:
        blocks: whole lines, in the file's order.
        file: what they come from; its format says how to parse them.
        source: how a row's text is made.
        keep: the columns to carry through, with their types.
        options: how line formats are read.
        layout: of a CSV or TSV file.

    Raises:
        InputError: a quoted CSV value runs over the end of the fragment.
    """
    groups: Iterator[tuple[Iterable[Row], int]]
    if file.format in ("csv", "tsv"):
        groups = _csv_rows(blocks, file, options, layout)
    elif file.format == "jsonl":
        groups = ((_json_rows(block, options), block.read) for block in blocks)
    else:
        groups = ((_text_rows(block, source.columns[0], options), block.read) for block in blocks)
    for rows, read in groups:
        yield rows_from_values(rows, source, keep), read


def csv_layout(storage: Storage, file: InputFile, options: LineOptions, lines: list[bytes] | None = None) -> Layout:
    """The columns of a CSV or TSV file: its first record, or the names given in the options.

    Args:
        storage: the input folder.
        file: the file.
        options: how it is read.
        lines: its first lines, if they are known already.

    Raises:
        InputError: the header cannot be read.
    """
    delimiter = options.csv_delimiter(file.format)
    if options.columns:
        return Layout(options.columns, delimiter=delimiter, in_file=False)
    if lines is None:
        lines = first_lines(storage, file, HEADER_LINES, HEADER_AHEAD)
    text = [decode(line, options)[0] + "\n" for line in lines]
    if text:
        text[0] = text[0].removeprefix("\ufeff")
    skipped = 0
    while skipped < len(text) and not text[skipped].strip():
        skipped += 1
    if skipped < len(text) and (match := SEPARATOR_LINE.fullmatch(text[skipped].strip("\r\n"))):
        delimiter = options.delimiter or match[1]
        skipped += 1
    reader = _csv_reader(iter(text[skipped:]), file, options, delimiter)
    try:
        names: list[str] = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{storage.url(file.name)}: bad CSV header ({error})") from error
    used = skipped + reader.line_num
    return Layout(tuple(names), tuple(names), delimiter, sum(len(line) + 1 for line in lines[:used]), used)


def json_objects(lines: list[bytes], options: LineOptions) -> list[dict[str, Any]]:
    """The good objects among the first lines of a JSONL file."""
    block = Lines(lines, 0, "line", 0)
    return [values for _, values, reason in _json_rows(block, options) if reason is None]


def _numbered(block: Lines) -> Iterator[tuple[int, bytes]]:
    position = block.position
    for line in block.lines:
        yield position, line
        position += 1 if block.unit == "line" else len(line) + 1


def decode(line: bytes, options: LineOptions) -> tuple[str, str | None]:
    """A line as text, and what is wrong with it."""
    try:
        return line.decode(options.codec), None
    except UnicodeDecodeError as error:
        text = line.decode(options.codec, "surrogateescape")
        other = other_codec([line], options)
        hint = f"; it is valid {other} (input.encoding={other})" if other else ""
        return text, f"invalid {options.encoding} at its byte {error.start}{hint}"


def other_codec(lines: Iterable[bytes], options: LineOptions) -> str | None:
    """A usual codec that all lines are valid in, other than the one they should be in."""
    for codec in OTHER_CODECS:
        if codec == options.codec:
            continue
        try:
            for line in lines:
                line.decode(codec)
        except UnicodeDecodeError:
            continue
        return codec
    return None


def _constant(name: str) -> float | None:
    """What JSON does not know and Python writes: NaN is pandas' null."""
    return None if name == "NaN" else math.inf if name == "Infinity" else -math.inf


_JSON = json.JSONDecoder(parse_constant=_constant)


def _json_rows(block: Lines, options: LineOptions) -> Iterator[Row]:
    for position, line in _numbered(block):
        content, reason = decode(line, options)
        if position == 0:
            content = content.removeprefix("\ufeff")
        if not content.strip():
            continue
        values: Any = {}
        if reason is None:
            try:
                values = _JSON.decode(content)
            except (ValueError, RecursionError) as error:
                reason = f"bad JSON ({error})"
            else:
                if not isinstance(values, dict):
                    reason, values = f"a JSON {type(values).__name__}, not an object", {}
        yield position, values, reason


def _text_rows(block: Lines, text: str, options: LineOptions) -> Iterator[Row]:
    for position, line in _numbered(block):
        content, reason = decode(line.removesuffix(b"\r"), options)
        if position == 0:
            content = content.removeprefix("\ufeff")
        if content.strip():
            yield position, {text: content}, reason


def _csv_reader(lines: Iterable[str], file: InputFile, options: LineOptions, delimiter: str) -> Any:
    csv.field_size_limit(MAX_LINE_BYTES)
    quoting = options.csv_quoting(file.format)
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, escapechar=options.escape, strict=True)


def _hide_returns(line: str) -> str:
    """The line with each CR that does not end it replaced."""
    if "\r" not in line:
        return line
    body = line.rstrip("\r")
    return body.replace("\r", CARRIAGE_RETURN) + line[len(body) :]


def _csv_rows(
    blocks: Iterable[Lines], file: InputFile, options: LineOptions, layout: Layout
) -> Iterator[tuple[Iterable[Row], int]]:
    """Records may span lines, and so blocks: one reader pulls lines from all of them."""
    positions: list[int] = []  # of the lines fed since the last yield
    broken: dict[int, str] = {}  # positions of the lines that are not in the encoding
    quoted: set[int] = set()  # positions of the lines that hold a quote behind a backslash
    read = held = 0  # bytes of the file, and characters of its lines, since the last yield

    def feed() -> Iterator[str]:
        nonlocal read, held
        for block in blocks:
            start = layout.start if block.unit == "byte" else layout.start_line
            # Each line is given its part of what was fetched: a block may hold the rows of many slices.
            size, seen, given = sum(len(line) + 1 for line in block.lines), 0, 0
            for position, line in _numbered(block):
                seen += len(line) + 1
                share = block.read * seen // size
                read, given = read + share - given, share
                if position < start:
                    continue
                content, reason = decode(line, options)
                if position == 0:
                    content = content.removeprefix("\ufeff")
                if reason:
                    broken[position] = reason
                elif '\\"' in content:
                    quoted.add(position)
                positions.append(position)
                held += len(content)
                yield _hide_returns(content) + "\n"
            read += block.read - given

    reader = _csv_reader(feed(), file, options, layout.delimiter)
    names = list(layout.names)
    # Of a single column, a value may well be called as the column is.
    header = [name.replace("\r", CARRIAGE_RETURN) for name in layout.header] if layout.in_file and len(names) > 1 else None
    nulls = frozenset(options.null_values)
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
        if record == header:  # again: files were put one behind the other
            record = []
        if record or reason:
            backslashes = any(position in quoted for position in lines)
            quoted.difference_update(lines)
            for position in lines:
                reason = broken.pop(position, None) or reason
            if reason is None and len(record) != len(names):
                reason = f"{len(record)} values, but {len(names)} columns"
            if reason and backslashes and options.escape is None:
                reason += '; quotes behind a backslash are read with input.escape="\\"'
            values: dict[str, Any] = dict(zip(names, record, strict=False))
            for name, value in values.items():
                if value in nulls:
                    values[name] = None
                elif CARRIAGE_RETURN in value:
                    values[name] = value.replace(CARRIAGE_RETURN, "\r")
            rows.append((lines[0], values, reason))
        if number % GROUP_ROWS == GROUP_ROWS - 1 or held >= GROUP_CHARACTERS:
            yield rows, read
            rows, read, held = [], 0, 0
            del positions[: consumed - dropped]
            dropped = consumed
    yield rows, read
