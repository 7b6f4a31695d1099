"""Decompresses files as streams of blocks. Blocks before a fault are valid, and the error names the file."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from kosbert_ray.corpus.sniff import GZIP, HEAD_BYTES, check_compressed
from kosbert_ray.errors import InputBroken, InputError, first_line, shown_names

READ_BYTES = 128 * 2**10  # to read at a time; as much is lost at a fault
GZIP_WBITS = 31
MAC_FOLDER = "__MACOSX/"  # resource forks that macOS adds to an archive


def decompressed(handle: IO[bytes], compression: str, where: str, suffixes: Sequence[str], header: bool) -> Iterator[bytes]:
    """Yields the content of a compressed file block by block.

    Args:
        handle: the stored file, at its start.
        compression: "gzip", "zstd" or "zip".
        where: the file's address.
        suffixes: extensions that the files in an archive must have, if there are several.
        header: whether each file in an archive begins with a header line.

    Raises:
        InputError: the file is not compressed as its name says, or is an archive of files that do not go together.
        InputBroken: the data is corrupt or truncated after what was yielded.
    """
    problem = check_compressed(handle.read(HEAD_BYTES), compression)
    if problem:
        raise InputError(f"{where}: {problem}")
    handle.seek(0)
    try:
        if compression == "gzip":
            yield from _gzip(handle)
        elif compression == "zstd":
            yield from _blocks(pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), "zstd"))
        else:
            yield from _zip(handle, where, suffixes, header)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # an I/O error, not corrupt data
        if "too much memory" in str(error):
            raise InputError(
                f"{where}: compressed with too long a window (zstd --long); recompress it without --long"
            ) from error
        raise InputBroken(f"{where}: corrupt or truncated {compression} data ({first_line(error)})") from error


def _blocks(stream: Any) -> Iterator[bytes]:
    while block := stream.read(READ_BYTES):
        yield block


def _gzip(handle: IO[bytes]) -> Iterator[bytes]:
    """Decompresses all members. Zeros after the last one are padding, as for ``gzip -d``."""
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
            yield b"\n"  # the last line is complete, whether or not a newline ends it
            raise EOFError("it is followed by bytes that are not gzip data; the rows before them are valid")
    if begun:
        raise EOFError("the file ends in the middle of the data")


def _zip(handle: IO[bytes], where: str, suffixes: Sequence[str], header: bool) -> Iterator[bytes]:
    """Concatenates the files of an archive, which must have one format and, where they have a header, the same one."""
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
    others = [member.filename for member in members if posixpath.splitext(member.filename.lower())[1] not in suffixes]
    if len(members) > 1 and others:
        raise InputError(
            f"{where}: contains {len(members)} files, and {shown_names(others)} cannot be read as {suffixes[0]}; unpack it"
        )
    first = None
    for member in members:
        last = b"\n"
        with archive.open(member) as stream:
            for block in _blocks(stream):
                if last == b"\n" and header and stream.tell() == len(block):
                    line = block.partition(b"\n")[0].rstrip(b"\r")
                    first = line if first is None else first
                    if line != first:
                        raise InputError(f"{where}: the headers of its files differ ({member.filename}); unpack it")
                yield block
                last = block[-1:]
        if last != b"\n" and member is not members[-1]:
            yield b"\n"
