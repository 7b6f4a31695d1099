"""Reads whole lines from a byte range of an uncompressed file, or from a compressed file as a whole.

Lines are yielded in blocks with their positions; a file is never held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Literal

from kosbert_ray.corpus.decompress import decompressed
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.sniff import HEAD_BYTES, check_line_ends
from kosbert_ray.errors import InputBroken, InputError
from kosbert_ray.storage import Storage, storage_errors

BLOCK_BYTES = 2**20
MAX_LINE_BYTES = 64 * 2**20  # a longer line means that the file is not text


@dataclass(frozen=True)
class Content:
    """The expected content of the files of a line format.

    Attributes:
        check: returns the problem with a file's first bytes (decompressed), if there is one.
        suffixes: extensions of the files; those in an archive must have one of them.
        header: whether each file begins with a header line.
    """

    check: Callable[[bytes], str | None]
    suffixes: tuple[str, ...] = ()
    header: bool = False


@dataclass(frozen=True)
class Lines:
    """A block of whole lines, without their line ends.

    Attributes:
        lines: the lines.
        position: byte offset or line number (see ``unit``) of the first line.
        unit: "byte" or "line".
        read: number of bytes of the stored file that were read for the block.
    """

    lines: list[bytes]
    position: int
    unit: Literal["byte", "line"]
    read: int


def read_lines(
    storage: Storage, file: InputFile, content: Content, start: int, stop: int, ahead: int | None = None
) -> Iterator[Lines]:
    """Reads the lines whose first byte is in ``[start, stop)``, or all lines of a compressed file.

    Args:
        storage: the input folder.
        file: the file.
        content: what it should contain.
        start: first byte of the range.
        stop: first byte after the range.
        ahead: number of bytes to fetch at a time; None to fetch as for reading to the end of the range.

    Raises:
        InputError: the content is not what the file's name says.
        InputBroken: the compressed data is corrupt or truncated, or a line is longer than 64 MiB.
        StorageError: the file cannot be read.
    """
    where = storage.url(file.name)
    if not file.size:
        return
    with storage_errors(where), storage.open(file.name, ahead) as handle:
        if file.compression:
            yield from _compressed_lines(handle, file, content, where)
        else:
            if start:  # the file's first bytes belong to another fragment, but show what this one contains, too
                _check(storage.read_head(file.name, HEAD_BYTES), content, where)
            yield from _range_lines(handle, start, stop, content, where)


def first_lines(storage: Storage, file: InputFile, content: Content, most: int, ahead: int | None = None) -> list[bytes]:
    """Reads up to ``most`` lines from the start of a file, or the lines before the first fault."""
    found: list[bytes] = []
    try:
        for block in read_lines(storage, file, content, 0, BLOCK_BYTES, ahead):
            found += block.lines
            if len(found) >= most:
                break
    except InputBroken:
        if not found:
            raise
    return found[:most]


def _check(block: bytes, content: Content, where: str) -> None:
    """Raises InputError if a file's first bytes are not what its name says."""
    problem = content.check(block[:HEAD_BYTES]) or check_line_ends(block)
    if problem:
        raise InputError(f"{where}: {problem}")


def _range_lines(handle: IO[bytes], start: int, stop: int, content: Content, where: str) -> Iterator[Lines]:
    position = start
    if start:
        # A line belongs to the range of its first byte: skip the line that begins before this range.
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
            _check(block, content, where)
        rest = _checked(rest + block, where, position)
        end = rest.rfind(b"\n") + 1
        if end:
            yield Lines(_split(rest[:end]), position, "byte", end)
            position, rest = position + end, rest[end:]
    if rest:  # the last line begins here and ends past the range, or with the file
        while not rest.endswith(b"\n"):
            block = handle.readline(BLOCK_BYTES)
            if not block:
                break
            rest = _checked(rest + block, where, position)
        yield Lines(_split(rest), position, "byte", len(rest))


def _compressed_lines(handle: IO[bytes], file: InputFile, content: Content, where: str) -> Iterator[Lines]:
    position, read, rest = 0, 0, b""
    first = True
    try:
        for block in decompressed(handle, file.compression or "", where, content.suffixes, content.header):
            if first:
                _check(block, content, where)
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
        end = rest.rfind(b"\n") + 1  # the line with the fault is incomplete
        if end:
            yield Lines(_split(rest[:end]), position, "line", 0)
        raise
    if rest or read < file.size:
        yield Lines(_split(rest) if rest else [], position, "line", file.size - read)


def _checked(rest: bytes, where: str, position: int) -> bytes:
    if len(rest) > MAX_LINE_BYTES and b"\n" not in rest:
        raise InputBroken(f"{where}: a line of over {MAX_LINE_BYTES >> 20} MiB at {position}; is this a text file?")
    return rest


def _split(block: bytes) -> list[bytes]:
    """Splits a block that ends with a newline or with the file; removes ``\\n`` and keeps ``\\r``."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
