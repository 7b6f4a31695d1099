"""Complete lines out of bytes: a byte range of an uncompressed file, or a compressed file from its start to its end.

Comes in: a file and a byte range. Goes out: blocks of whole lines with the position of each, never the whole file.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import pyarrow as pa

from kosbert_ray.corpus.listing import InputFile
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.storage import Storage, storage_errors

BLOCK_BYTES = 2**20
MAX_LINE_BYTES = 64 * 2**20  # a longer line is not text but a file of another kind


@dataclass(frozen=True)
class LineOptions:
    """How line formats are read; ``None`` means the format's own custom.

    ``delimiter``: comma for CSV, tab for TSV. ``quoting``: "minimal" for CSV (RFC 4180), "none" for TSV.
    ``newlines_in_values``: a quoted CSV value may span lines; such a file is read in one pass.
    ``columns``: names of the columns where CSV and TSV files have no header line.
    ``encoding``: any Python codec in which a newline is one byte, such as cp949.
    """

    delimiter: str | None = None
    quoting: Literal["minimal", "none"] | None = None
    newlines_in_values: bool = False
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        try:
            one_byte = '\n",'.encode(self.encoding) == b'\n",'
        except LookupError:
            raise UsageError(f"input.encoding: no such encoding {self.encoding!r}") from None
        if not one_byte:
            raise UsageError(f"input.encoding: {self.encoding} cannot be cut at line ends; convert the files to utf-8")

    def csv_delimiter(self, format: str) -> str:
        """The character between values."""
        return self.delimiter or ("\t" if format == "tsv" else ",")

    def csv_quoting(self, format: str) -> Literal[0, 3]:
        """The quoting, as the csv module names it."""
        quoting = self.quoting or ("none" if format == "tsv" else "minimal")
        return csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL


@dataclass(frozen=True)
class Lines:
    """Whole lines without their ends; ``position`` is the first one's byte offset or row number (see ``unit``).

    ``read`` is how many bytes of the stored file were fetched to get them.
    """

    lines: list[bytes]
    position: int
    unit: Literal["byte", "line"]
    read: int


def read_lines(storage: Storage, file: InputFile, start: int, stop: int) -> Iterator[Lines]:
    """The lines whose first byte lies in ``[start, stop)`` of the file, or all lines of a compressed one.

    Raises:
        InputError: the compressed data is broken or cut short, or a line is longer than 64 MiB.
        StorageError: the file cannot be read.
    """
    where = storage.url(file.name)
    with storage_errors(where), storage.open(file.name) as handle:
        if file.compression:
            yield from _compressed_lines(handle, file, where)
        else:
            yield from _range_lines(handle, start, stop, where)


def first_lines(storage: Storage, file: InputFile, most: int) -> list[bytes]:
    """Up to ``most`` lines from the start of a file."""
    found: list[bytes] = []
    for block in read_lines(storage, file, 0, BLOCK_BYTES):
        found += block.lines
        if len(found) >= most:
            break
    return found[:most]


def _range_lines(handle: IO[bytes], start: int, stop: int, where: str) -> Iterator[Lines]:
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


def _compressed_lines(handle: IO[bytes], file: InputFile, where: str) -> Iterator[Lines]:
    position, read, rest = 0, 0, b""
    try:
        with _decompressed(handle, file, where) as stream:
            while block := stream.read(BLOCK_BYTES):
                rest = _checked(rest + block, where, position)
                end = rest.rfind(b"\n") + 1
                if end:
                    fetched = min(handle.tell(), file.size)
                    lines = _split(rest[:end])
                    yield Lines(lines, position, "line", fetched - read)
                    position, read, rest = position + len(lines), fetched, rest[end:]
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{where}: broken or cut-short {file.compression} data ({error})") from error
    if rest or read < file.size:
        yield Lines(_split(rest) if rest else [], position, "line", file.size - read)


def _decompressed(handle: IO[bytes], file: InputFile, where: str) -> Any:
    if file.compression != "zip":
        return pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), file.compression)
    archive = zipfile.ZipFile(handle)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise InputError(f"{where}: holds {len(members)} files; a zipped text shard holds one, so unpack it")
    return archive.open(members[0])


def _checked(rest: bytes, where: str, position: int) -> bytes:
    if len(rest) > MAX_LINE_BYTES and b"\n" not in rest:
        raise InputError(f"{where}: a line of over {MAX_LINE_BYTES >> 20} MiB at {position}; is it a text shard?")
    return rest


def _split(block: bytes) -> list[bytes]:
    """Lines of a block that ends with a newline or with the file; line ends (``\\n``) stay out, ``\\r`` is left in."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
