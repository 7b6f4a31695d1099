"""Complete lines out of bytes: a byte range of an uncompressed file, or a compressed file from its start to its end.

Comes in: a file and a byte range. Goes out: blocks of whole lines with the position of each, never the whole file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import IO, Literal

from kosbert_ray.corpus.decompress import decompressed
from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.corpus.sniff import HEAD_BYTES, check_line_ends, check_text
from kosbert_ray.errors import InputBroken, InputError, UsageError
from kosbert_ray.storage import Storage, storage_errors

BLOCK_BYTES = 2**20
MAX_LINE_BYTES = 64 * 2**20  # a longer line is not text but a file of another kind


@dataclass(frozen=True, repr=False)
class LineOptions:
    """How line formats are read; ``None`` means the format's own custom.

    ``delimiter``: comma for CSV, tab for TSV. ``quoting``: "minimal" for CSV (RFC 4180), "none" for TSV.
    ``newlines_in_values``: a quoted CSV value may span lines; such a file is read in one pass.
    ``columns``: names of the columns where CSV and TSV files have no header line.
    ``encoding``: any Python codec in which a newline is one byte, such as cp949.
    ``escape``: the character before a quote (or itself) inside a CSV or TSV value, such as Spark's backslash.
    ``null_values``: what stands for null in CSV and TSV files, such as ``\\N``.
    """

    delimiter: str | None = None
    quoting: Literal["minimal", "none"] | None = None
    newlines_in_values: bool = False
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    escape: str | None = None
    null_values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            fit = _is_cut_at_newlines(self.codec)
        except LookupError:
            raise UsageError(f"input.encoding: no such encoding {self.encoding!r}") from None
        if not fit:
            raise UsageError(f"input.encoding: {self.encoding} cannot be cut at line ends; convert the files to utf-8")

    def __repr__(self) -> str:
        """Part of an output's fingerprint: what came after 0.1.0 is named only where it is not at its default."""
        shown = [field for field in fields(self) if field.name not in LATER or getattr(self, field.name) != field.default]
        return f"LineOptions({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in shown)})"

    @cached_property
    def codec(self) -> str:
        """The codec of a line; the byte order mark that utf-8-sig speaks of is taken off the first line anyway."""
        return "utf-8" if self.encoding.lower().replace("_", "-") in ("utf-8-sig", "utf8-sig") else self.encoding

    def csv_delimiter(self, format: str) -> str:
        """The character between values."""
        return self.delimiter or ("\t" if format == "tsv" else ",")

    def csv_quoting(self, format: str) -> Literal[0, 3]:
        """The quoting, as the csv module names it."""
        quoting = self.quoting or ("none" if format == "tsv" else "minimal")
        return csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL


LATER = ("escape", "null_values")


def _is_cut_at_newlines(codec: str) -> bool:
    """Whether each line can be decoded without those before it, as in all codecs that are no wide or stateful ones."""
    if '\n",'.encode(codec) != b'\n",':
        return False
    try:
        text = '한글"\n,하나\n한글'
        return [line.decode(codec) for line in text.encode(codec).split(b"\n")] == text.split("\n")
    except UnicodeEncodeError:  # it has no Hangul
        return True
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class Lines:
    """Whole lines without their ends; ``position`` is the first one's byte offset or row number (see ``unit``).

    ``read`` is how many bytes of the stored file were fetched to get them.
    """

    lines: list[bytes]
    position: int
    unit: Literal["byte", "line"]
    read: int


def read_lines(
    storage: Storage, file: InputFile, start: int, stop: int, ahead: int | None = None, header: bool = True
) -> Iterator[Lines]:
    """The lines whose first byte lies in ``[start, stop)`` of the file, or all lines of a compressed one.

    Args:
        storage: the input folder.
        file: what to read.
        start: the first byte of the range.
        stop: the first byte after it.
        ahead: how much of the file to fetch at a time; None if it is read to the range's end.
        header: whether CSV and TSV files begin with a header line.

    Raises:
        InputError: the content is not what the file's name says.
        InputBroken: the compressed data is broken or cut short, or a line is longer than 64 MiB.
        StorageError: the file cannot be read.
    """
    where = storage.url(file.name)
    if not file.size:
        return
    with storage_errors(where), storage.open(file.name, ahead) as handle:
        if file.compression:
            yield from _compressed_lines(handle, file, where, header)
        else:
            if start:  # its first bytes are another fragment's: what they say holds for this one, too
                _check(storage.read_head(file.name, HEAD_BYTES), file, where)
            yield from _range_lines(handle, start, stop, file, where)


def first_lines(storage: Storage, file: InputFile, most: int, ahead: int | None = None, header: bool = True) -> list[bytes]:
    """Up to ``most`` lines from the start of a file, or those before a fault in it."""
    found: list[bytes] = []
    try:
        for block in read_lines(storage, file, 0, BLOCK_BYTES, ahead, header):
            found += block.lines
            if len(found) >= most:
                break
    except InputBroken:
        if not found:
            raise
    return found[:most]


def _check(block: bytes, file: InputFile, where: str) -> None:
    """Raises InputError if a file's first bytes are not what its name says."""
    problem = check_text(block[:HEAD_BYTES], file.format) or check_line_ends(block)
    if problem:
        raise InputError(f"{where}: {problem}")


def _range_lines(handle: IO[bytes], start: int, stop: int, file: InputFile, where: str) -> Iterator[Lines]:
    position = start
    if start:
        # A line belongs to the range that holds its first byte: skip the one that began before us.
        position -= 1
        handle.seek(position)
        while position < stop:
            block = handle.readline(BLOCK_BYTES)
            position += len(block)
            if not block or block.endswith(b"\n"):
                break
    rest = b""
    while position + len(rest) < stop:
        block = handle.read(min(BLOCK_BYTES, stop - position - len(rest)))
        if not block:
            break
        if position == 0 and not rest:
            _check(block, file, where)
        rest = _checked(rest + block, where, position)
        end = rest.rfind(b"\n") + 1
        if end:
            yield Lines(_split(rest[:end]), position, "byte", end)
            position, rest = position + end, rest[end:]
    if rest:  # the last line began here and ends beyond the range, or with the file
        while not rest.endswith(b"\n"):
            block = handle.readline(BLOCK_BYTES)
            if not block:
                break
            rest = _checked(rest + block, where, position)
        yield Lines(_split(rest), position, "byte", len(rest))


def _compressed_lines(handle: IO[bytes], file: InputFile, where: str, header: bool) -> Iterator[Lines]:
    position, read, rest = 0, 0, b""
    first = True
    try:
        for block in decompressed(handle, file, where, header):
            if first:
                _check(block, file, where)
                first = False
            rest = _checked(rest + block, where, position)
            if len(rest) < BLOCK_BYTES:
                continue
            end = rest.rfind(b"\n") + 1
            if end:
                fetched = min(handle.tell(), file.size)
                lines = _split(rest[:end])
                yield Lines(lines, position, "line", fetched - read)
                position, read, rest = position + len(lines), fetched, rest[end:]
    except InputBroken:
        end = rest.rfind(b"\n") + 1  # the line that the fault lies in is not whole
        if end:
            yield Lines(_split(rest[:end]), position, "line", 0)
        raise
    if rest or read < file.size:
        yield Lines(_split(rest) if rest else [], position, "line", file.size - read)


def _checked(rest: bytes, where: str, position: int) -> bytes:
    if len(rest) > MAX_LINE_BYTES and b"\n" not in rest:
        raise InputBroken(f"{where}: a line of over {MAX_LINE_BYTES >> 20} MiB at {position}; is it a text shard?")
    return rest


def _split(block: bytes) -> list[bytes]:
    """Lines of a block that ends with a newline or with the file; line ends (``\\n``) stay out, ``\\r`` is left in."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
