"""Helpers for formats that consist of lines: JSON Lines, CSV, TSV and plain text.

A record that cannot be used is not an error but a row with a ``__reason``: it stays in its slice and ends up in
``_kosbert/rejected/``. Only faults that make the rest of the file unreadable are raised. Blank lines are not rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import pyarrow as pa

from kosbert_ray.corpus.columns import Columns
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import Format, Wanted
from kosbert_ray.corpus.fragments import Fragment, Limits, byte_ranges, whole_file
from kosbert_ray.corpus.lines import Content, Lines, first_lines, read_lines
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import Row, rows_from_values
from kosbert_ray.corpus.sniff import check_text
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural

SAMPLE_LINES = 1000  # lines to inspect
SAMPLE_AHEAD = 2**18  # bytes to fetch at a time for them
OTHER_CODECS = ("utf-8", "cp949")


class LineFormat(Format):
    """A format of lines. Its files may be compressed; an uncompressed one is split at any byte.

    Attributes:
        header: whether files begin with a header line.
    """

    header: ClassVar[bool] = False

    def check(self, head: bytes) -> str | None:
        """Returns the problem with the first bytes of a file (decompressed), if there is one."""
        return check_text(head)

    def content(self, options: LineOptions) -> Content:
        """The expected content of files, for :func:`~kosbert_ray.corpus.lines.read_lines`."""
        return Content(self.check, self.info.suffixes, self.header and not options.columns)

    def first_lines(self, storage: Storage, file: InputFile, wanted: Wanted) -> list[bytes]:
        """The lines that :meth:`look` inspects."""
        return first_lines(storage, file, self.content(wanted.options), SAMPLE_LINES, SAMPLE_AHEAD)

    def fragments(self, file: InputFile, limits: Limits, newlines_in_values: bool) -> Iterator[Fragment]:  # noqa: ARG002
        """Byte ranges of a slice's size; a compressed file is one fragment."""
        return whole_file(file) if self.info.one_pass(file) else byte_ranges(file, limits.max_bytes)

    def rows(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[pa.Table, int]]:
        """See :meth:`Format.rows`."""
        for rows, read in self.records(storage, fragment, columns, options):
            yield rows_from_values(rows, columns.source, columns.stored), read

    @abstractmethod
    def records(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[Iterable[Row], int]]:
        """Parses a fragment into groups of rows, each with the bytes of the stored file that were read for it."""

    def blocks(self, storage: Storage, fragment: Fragment, options: LineOptions) -> Iterator[Lines]:
        """The lines of a fragment, block by block."""
        return read_lines(storage, fragment.file, self.content(options), fragment.start, fragment.stop)


def decode(line: bytes, options: LineOptions) -> tuple[str, str | None]:
    """Decodes a line. Returns its text and, if it is not in the encoding, the reason."""
    try:
        return line.decode(options.codec), None
    except UnicodeDecodeError as error:
        text = line.decode(options.codec, "surrogateescape")
        other = other_codec([line], options)
        hint = f"; it is valid {other} (input.encoding={other})" if other else ""
        return text, f"invalid {options.encoding} at its byte {error.start}{hint}"


def decoded(block: Lines, options: LineOptions) -> Iterator[tuple[int, str, str | None]]:
    """The lines of a block as position, text without a byte order mark, and the reason of :func:`decode`."""
    position, codec, by_line = block.position, options.codec, block.unit == "line"
    for line in block.lines:
        content, reason = "", None
        try:
            content = line.decode(codec)
        except UnicodeDecodeError:
            content, reason = decode(line, options)
        yield position, content if position else content.removeprefix("\ufeff"), reason
        position += 1 if by_line else len(line) + 1


def other_codec(lines: Iterable[bytes], options: LineOptions) -> str | None:
    """A common codec, other than the configured one, in which all lines are valid."""
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


def encoding_notices(lines: Sequence[bytes], options: LineOptions) -> tuple[str, ...]:
    """Warns about lines that are valid in another common codec only."""
    bad = [line for line in lines if decode(line, options)[1]]
    other = other_codec(lines, options) if bad else None
    if not other:
        return ()
    return (
        f"{len(bad):,} of its first {plural(len(lines), 'line', 'are')} not {options.encoding}, but all are valid {other}; "
        f"set input.encoding={other} if that is their encoding",
    )
