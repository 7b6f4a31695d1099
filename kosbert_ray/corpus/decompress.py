"""Compressed files as streams of blocks; what was read before a fault is good, and the fault names the file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from kosbert_ray.corpus.listing import InputFile, classify
from kosbert_ray.corpus.sniff import GZIP, HEAD_BYTES, check_compressed
from kosbert_ray.errors import InputBroken, InputError, first_line, shown_names

READ_BYTES = 128 * 2**10  # at a time: what is lost at a fault
GZIP_WBITS = 31
MAC_FOLDER = "__MACOSX/"  # resource forks that macOS adds to an archive


def decompressed(handle: IO[bytes], file: InputFile, where: str, header: bool) -> Iterator[bytes]:
    """The content of a compressed file, block by block.

    Args:
        handle: the stored file, at its start.
        file: what it is.
        where: its address.
        header: whether CSV and TSV files begin with a header line.

    Raises:
        InputError: it is not compressed as its name says, or an archive of several things.
        InputBroken: it is broken or cut short after what was yielded.
    """
    assert file.compression
    problem = check_compressed(handle.read(HEAD_BYTES), file.compression)
    if problem:
        raise InputError(f"{where}: {problem}")
    handle.seek(0)
    try:
        if file.compression == "gzip":
            yield from _gzip(handle)
        elif file.compression == "zstd":
            yield from _blocks(pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), "zstd"))
        else:
            yield from _zip(handle, file, where, header)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the data's
        if "too much memory" in str(error):
            raise InputError(
                f"{where}: compressed with a window that is too long (zstd --long); recompress it without --long"
            ) from error
        raise InputBroken(f"{where}: broken or cut-short {file.compression} data ({first_line(error)})") from error


def _blocks(stream: Any) -> Iterator[bytes]:
    while block := stream.read(READ_BYTES):
        yield block


def _gzip(handle: IO[bytes]) -> Iterator[bytes]:
    """All members, one after another. Zeros after the last are padding, as ``gzip -d`` takes them."""
    member = zlib.decompressobj(GZIP_WBITS)
    begun = False
    chunk = b""
    while True:
        chunk = chunk or handle.read(READ_BYTES)
        if not chunk:
            break
        begun = True
        block = member.decompress(chunk, READ_BYTES * 8)
        if block:
            yield block
        chunk = member.unconsumed_tail
        if not member.eof:
            continue
        chunk, begun = member.unused_data, False
        member = zlib.decompressobj(GZIP_WBITS)
        while not (chunk := chunk.lstrip(b"\0")):
            chunk = handle.read(READ_BYTES)
            if not chunk:
                return
        chunk += handle.read(1) if len(chunk) == 1 else b""
        if not chunk.startswith(GZIP):
            yield b"\n"  # the last line is whole, whether or not a newline ends it
            raise EOFError("bytes that are no gzip data follow the data; its rows are good")
    if begun:
        raise EOFError("the file ends in the middle of the data")


def _zip(handle: IO[bytes], file: InputFile, where: str, header: bool) -> Iterator[bytes]:
    """The archive's files one after another; they must be of one format and, where they have a header, of one header."""
    archive = zipfile.ZipFile(handle)
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir()
        and not member.filename.startswith(MAC_FOLDER)
        and not member.filename.rpartition("/")[2].startswith(".")
    ]
    if not members:
        raise InputError(f"{where}: an archive without files")
    others = [member.filename for member in members if classify(member.filename) != (file.format, None)]
    if len(members) > 1 and others:
        raise InputError(
            f"{where}: holds {len(members)} files, and {shown_names(others)} cannot be read as {file.format}; unpack it"
        )
    first = None
    for member in members:
        last = b"\n"
        with archive.open(member) as stream:
            for block in _blocks(stream):
                if last == b"\n" and header and file.format in ("csv", "tsv") and stream.tell() == len(block):
                    line = block.partition(b"\n")[0].rstrip(b"\r")
                    first = line if first is None else first
                    if line != first:
                        raise InputError(f"{where}: the headers of its files differ ({member.filename}); unpack it")
                yield block
                last = block[-1:]
        if last != b"\n" and member is not members[-1]:
            yield b"\n"
