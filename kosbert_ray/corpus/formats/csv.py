"""CSV and TSV: delimited values under a header, which may be in the file or in the options."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Look, Wanted
from kosbert_ray.corpus.formats.line_based import LineFormat, decode, decoded, encoding_notices
from kosbert_ray.corpus.fragments import Fragment, Limits, whole_file
from kosbert_ray.corpus.lines import MAX_LINE_BYTES, Lines, first_lines
from kosbert_ray.corpus.names import own_name, require
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import Row
from kosbert_ray.corpus.types import Seen
from kosbert_ray.errors import InputError
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural

HEADER_LINES = 100  # a header with quoted newlines may take a few
HEADER_AHEAD = 2**18  # bytes to fetch for it
GROUP_ROWS = 4096  # records to hold at a time, or fewer if they have
GROUP_CHARACTERS = 16 * 2**20
SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # Excel's own first line
# Replaces a lone CR inside a value while the csv module, which takes it for a line end, reads the line. No codec decodes
# to it.
CARRIAGE_RETURN = "\udc0d"


@dataclass(frozen=True)
class Layout:
    """The columns of a file and the place where its rows start.

    Attributes:
        names: the columns.
        header: the columns as the file spells them.
        delimiter: the character between values.
        start: byte at which the rows begin.
        start_line: line at which the rows begin.
        in_file: whether the file has a header line.
    """

    names: tuple[str, ...]
    header: tuple[str, ...]
    delimiter: str
    start: int = 0
    start_line: int = 0
    in_file: bool = True


class Delimited(LineFormat):
    """Reads files of delimited values.

    Attributes:
        delimiter: the character between values, unless ``input.delimiter`` sets another.
        quoting: the quoting, unless ``input.quoting`` sets another.
    """

    header: ClassVar[bool] = True
    delimiter: ClassVar[str]
    quoting: ClassVar[Literal["minimal", "none"]]

    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:  # noqa: ARG002
        """See :meth:`Format.look`."""
        lines = self.first_lines(storage, file, wanted)
        layout = self.layout(storage, file, wanted.options, lines)
        present = layout.names
        if not present:
            return Look(file, (), empty=True)
        notices = list(encoding_notices(lines, wanted.options))
        _require_unique(present, [*wanted.text.columns, *wanted.keep])
        try:
            require(wanted.text.columns, lambda name: own_name(name, present) is not None, present, "input.text")
        except InputError as error:
            if notices:
                raise InputError(f"{_unreadable(present)}; {notices[0]}") from error
            raise InputError(f"{error}{_header_hint(present, layout.in_file)}") from error
        notices += self.quoting_notices(lines, wanted.options)
        if layout.in_file and len(present) > 1 and lines and lines[0] in lines[1:]:
            notices.append("its header line is repeated between the rows; the repetitions are not embedded")
        types = {name: Seen(pa.string(), loose=True) for name in wanted.keep if own_name(name, present) is not None}
        return Look(file, present, types, tuple(notices))

    def quoting_notices(self, lines: Sequence[bytes], options: LineOptions) -> list[str]:  # noqa: ARG002
        """Warns about lines that look quoted where quotes mean nothing."""
        return []

    def fragments(self, file: InputFile, limits: Limits, newlines_in_values: bool) -> Iterator[Fragment]:
        """Cuts a file into byte ranges; one whose values may contain newlines stays whole."""
        return whole_file(file) if newlines_in_values else super().fragments(file, limits, newlines_in_values)

    def records(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[list[Row], int]]:
        """See :meth:`LineFormat.records`."""
        where = storage.url(fragment.file.name)
        layout = _named(self.layout(storage, fragment.file, options), columns, where)
        return self._parse(self.blocks(storage, fragment, options), where, options, layout)

    def layout(
        self, storage: Storage, file: InputFile, options: LineOptions, lines: Sequence[bytes] | None = None
    ) -> Layout:
        """Reads the columns of a file from its first record, or takes them from the options.

        Args:
            storage: the input folder.
            file: the file.
            options: how to read it.
            lines: its first lines, if they have been read.

        Raises:
            InputError: the header cannot be read.
        """
        delimiter = options.delimiter or self.delimiter
        if options.columns:
            return Layout(options.columns, (), delimiter, in_file=False)
        if lines is None:
            lines = first_lines(storage, file, self.content(options), HEADER_LINES, HEADER_AHEAD)
        text = [decode(line, options)[0] + "\n" for line in lines]
        if text:
            text[0] = text[0].removeprefix("\ufeff")
        skipped = 0
        while skipped < len(text) and not text[skipped].strip():
            skipped += 1
        if skipped < len(text) and (match := SEPARATOR_LINE.fullmatch(text[skipped].strip("\r\n"))):
            delimiter = options.delimiter or match[1]
            skipped += 1
        reader = self._reader(iter(text[skipped:]), options, delimiter)
        try:
            names: list[str] = next(reader, [])
        except csv.Error as error:
            raise InputError(f"{storage.url(file.name)}: bad CSV header ({error})") from error
        used = skipped + reader.line_num
        return Layout(tuple(names), tuple(names), delimiter, sum(len(line) + 1 for line in lines[:used]), used)

    def _parse(
        self, blocks: Iterable[Lines], where: str, options: LineOptions, layout: Layout
    ) -> Iterator[tuple[list[Row], int]]:
        """Parses records, which may span lines and therefore blocks: one csv reader pulls lines from all blocks.

        Yields:
            Groups of rows, each with the number of bytes of the stored file that were read for it.

        Raises:
            InputError: a quoted value runs past the end of the fragment.
        """
        feed = _Feed(blocks, options, layout)
        reader = self._reader(feed, options, layout.delimiter)
        names = list(layout.names)
        # With a single column, a value may well equal the column's name.
        header = (
            [name.replace("\r", CARRIAGE_RETURN) for name in layout.header] if layout.in_file and len(names) > 1 else None
        )
        nulls = frozenset(options.null_values)
        rows: list[Row] = []
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
                        f"{where}: a quoted value that begins near {feed.position} continues past the lines that are "
                        "read together; set input.newlines_in_values=true, or input.quoting=none"
                    ) from error
                reason = f"bad CSV ({error})"
            position, broken, quoted = feed.take(reader.line_num)
            if record == header:  # repeated: files have been concatenated
                record = []
            if record or reason:
                reason = broken or reason
                if reason is None and len(record) != len(names):
                    reason = f"{len(record)} values, but {len(names)} columns"
                if reason and quoted and options.escape is None:
                    reason += '; quotes behind a backslash are read with input.escape="\\"'
                values: dict[str, Any] = dict(zip(names, record, strict=False))
                for name, value in values.items():
                    if value in nulls:
                        values[name] = None
                    elif CARRIAGE_RETURN in value:
                        values[name] = value.replace(CARRIAGE_RETURN, "\r")
                rows.append((position, values, reason))
            if number % GROUP_ROWS == GROUP_ROWS - 1 or feed.characters >= GROUP_CHARACTERS:
                yield rows, feed.flush()
                rows = []
        yield rows, feed.flush()

    def _reader(self, lines: Iterable[str], options: LineOptions, delimiter: str) -> Any:
        csv.field_size_limit(MAX_LINE_BYTES)
        quoting: Literal[0, 3] = csv.QUOTE_NONE if (options.quoting or self.quoting) == "none" else csv.QUOTE_MINIMAL
        return csv.reader(lines, delimiter=delimiter, quoting=quoting, escapechar=options.escape, strict=True)


class Csv(Delimited):
    """Reads CSV as RFC 4180 defines it."""

    delimiter: ClassVar[str] = ","
    quoting: ClassVar[Literal["minimal", "none"]] = "minimal"


class Tsv(Delimited):
    """Reads tab-separated values without quoting."""

    delimiter: ClassVar[str] = "\t"
    quoting: ClassVar[Literal["minimal", "none"]] = "none"

    def quoting_notices(self, lines: Sequence[bytes], options: LineOptions) -> list[str]:
        """See :meth:`Delimited.quoting_notices`."""
        quoted = sum(line.count(b'""') > 0 and (b'\t"' in line or line.startswith(b'"')) for line in lines)
        if options.quoting is not None or not quoted:
            return []
        return [
            f"{quoted:,} of its first {plural(len(lines), 'line', 'have')} values in doubled quotes, "
            "which TSV takes literally; "
            "set input.quoting=minimal to read them as CSV does"
        ]


class _Feed:
    """Feeds lines to a csv reader and keeps, for the current record, their positions and faults."""

    def __init__(self, blocks: Iterable[Lines], options: LineOptions, layout: Layout) -> None:
        self._blocks, self._options, self._layout = blocks, options, layout
        self._positions: list[int] = []  # of the lines fed since the last flush
        self._broken: dict[int, str] = {}  # positions of the lines that are not in the encoding
        self._quoted: set[int] = set()  # positions of the lines with a quote behind a backslash
        self._consumed = 0  # lines before the current record
        self._dropped = 0  # lines whose positions have been forgotten
        self._read = 0  # bytes of the file since the last flush
        self.characters = 0  # of the lines fed since the last flush

    @property
    def position(self) -> int:
        """The position of the current record."""
        return self._positions[self._consumed - self._dropped]

    def take(self, line_num: int) -> tuple[int, str | None, bool]:
        """Ends a record at the reader's line number.

        Returns its position, the reason if one of its lines is not in the encoding, and whether it has a quote behind a
        backslash.
        """
        lines = self._positions[self._consumed - self._dropped : line_num - self._dropped]
        self._consumed = line_num
        quoted = any(position in self._quoted for position in lines)
        self._quoted.difference_update(lines)
        reason = None
        for position in lines:
            reason = self._broken.pop(position, None) or reason
        return lines[0], reason, quoted

    def flush(self) -> int:
        """Forgets the records that have been taken. Returns the number of bytes that were read for them."""
        del self._positions[: self._consumed - self._dropped]
        self._dropped = self._consumed
        read, self._read, self.characters = self._read, 0, 0
        return read

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            start = self._layout.start if block.unit == "byte" else self._layout.start_line
            # Each line is assigned its share of the bytes read: a block may hold the rows of many slices.
            size, seen, given = sum(len(line) + 1 for line in block.lines), 0, 0
            for line, (position, content, reason) in zip(block.lines, decoded(block, self._options), strict=True):
                seen += len(line) + 1
                share = block.read * seen // size
                self._read, given = self._read + share - given, share
                if position < start:
                    continue
                if reason:
                    self._broken[position] = reason
                elif '\\"' in content:
                    self._quoted.add(position)
                self._positions.append(position)
                self.characters += len(content)
                yield _hide_returns(content) + "\n"
            self._read += block.read - given


def _hide_returns(line: str) -> str:
    """Replaces each CR except those at the end of the line."""
    if "\r" not in line:
        return line
    body = line.rstrip("\r")
    return body.replace("\r", CARRIAGE_RETURN) + line[len(body) :]


def _named(layout: Layout, columns: Columns, where: str) -> Layout:
    """Renames the columns to read to the names that the job uses."""
    names = layout.names
    if not names:  # only blank lines
        return layout
    try:
        _require_unique(names, columns.read)
        require(columns.source.columns, lambda name: own_name(name, names) is not None, names, "input.text")
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    asked = {own: name for name in columns.read if (own := own_name(name, names)) is not None}
    return replace(layout, names=tuple(asked.get(name, name) for name in names), header=names)


def _require_unique(present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises InputError if a header has a needed column more than once."""
    for name in needed:
        own = own_name(name, present)
        if own is not None and present.count(own) > 1:
            raise InputError(f"column {own!r} appears {present.count(own)} times in its header; give each its own name")


def _header_hint(present: Sequence[str], in_file: bool) -> str:
    """A hint for a header that lacks a column."""
    if len(present) == 1:
        for delimiter in (";", "\t", "|", ","):
            if delimiter in present[0]:
                return f"; if its values are separated by {delimiter!r}, set input.delimiter"
    return "; if it has no header line, name its columns with input.columns" if in_file else ""


def _unreadable(present: Sequence[str]) -> str:
    return f"its header cannot be read ({', '.join(name.encode('utf-8', 'replace').decode() for name in present[:5])})"
