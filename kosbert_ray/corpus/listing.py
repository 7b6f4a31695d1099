"""Which files are the corpus: INPUT (a file, a folder, a glob, an s3:// URL) becomes a sorted list of InputFile."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from fsspec.utils import glob_translate

from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.storage import FileEntry, Storage, StorageOptions, is_url

Format = Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
BINARY = ("parquet", "arrow")  # formats that are no lines
GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group: its rows and the uncompressed bytes of its text column."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class InputFile:
    """One file of the corpus.

    ``name`` is its path below the input folder. ``version`` identifies its content: the store's etag, on disk the mtime
    that was first seen with this content. ``stat`` is the mtime now, where it is another. ``compression`` is what wraps it
    (Parquet compresses inside and has none). ``row_groups`` is known for Parquet only, once its footer has been read.
    """

    name: str
    size: int
    version: str
    format: Format
    compression: str | None = None
    row_groups: tuple[RowGroup, ...] = field(default=(), repr=False)
    stat: str = ""

    @property
    def listed(self) -> tuple[int, str]:
        """Size and version as a listing shows them while the file stays as it was planned."""
        return self.size, self.stat or self.version

    @property
    def one_pass(self) -> bool:
        """Whether it can only be read from its start."""
        return self.format == "arrow" or self.compression is not None

    @property
    def row_numbers(self) -> bool:
        """Whether its rows are known by their number; those of plain line files by the byte they begin at."""
        return self.format in BINARY or self.compression is not None

    @property
    def rows(self) -> int:
        """Rows of a Parquet file, once its footer has been read."""
        return sum(group.rows for group in self.row_groups)


@dataclass(frozen=True)
class Corpus:
    """The input folder and the files in it that are to be embedded, sorted by name."""

    storage: Storage
    files: tuple[InputFile, ...]
    ignored: int

    @cached_property
    def size(self) -> int:
        """Bytes of all files, as stored."""
        return sum(file.size for file in self.files)


def classify(name: str, format: Format | None = None) -> tuple[Format, str | None] | None:
    """Format and compression by a file's name (``format`` overrules the first); None for a file that is no text shard."""
    base, suffix = posixpath.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = posixpath.splitext(base)[1]
    kind = format or SUFFIXES.get(suffix)
    if kind is None or (kind in BINARY and compression):
        return None
    return kind, compression


def hidden(name: str) -> bool:
    """True for what Arrow, Spark and DuckDB skip too: a file or folder whose name starts with ``_`` or ``.``."""
    return any(part.startswith(("_", ".")) for part in name.split("/"))


def list_corpus(address: str, options: StorageOptions | None = None, format: Format | None = None) -> Corpus:
    """Lists the text shards of ``address``.

    Args:
        address: a file, a folder (searched through) or a glob; on disk or ``s3://``. Names that start with ``_`` or ``.``
            are left out unless a glob spells them.
        options: how to reach the object store.
        format: read every file as this, whatever its name.

    Raises:
        StorageError: there is no such path, or the store refuses.
        InputError: nothing there is a text shard.
    """
    folder, pattern = _split_glob(address)
    storage = Storage(folder, options)
    entries: Sequence[FileEntry]
    if pattern:
        entries = [
            entry
            for entry in storage.list(recursive=True)
            if _matches(entry.name, pattern) and (hidden(pattern) or not hidden(entry.name))
        ]
        if not entries:
            raise InputError(f"{address}: no file matches")
    elif storage.is_file():
        parent, _, name = storage.address.rpartition("/")
        storage = Storage(parent or "/", options)
        entries = [storage.entry(name)]
    else:
        entries = storage.list(recursive=True)
        if not entries and not storage.exists():
            raise StorageError(f"{address}: no such file or folder")
        entries = [entry for entry in entries if not hidden(entry.name)]
        if not entries:
            raise InputError(f"{address}: the folder holds no files")
    files = [file for entry in entries if (file := _input_file(entry, format))]
    if not files:
        raise InputError(
            f"{address}: none of its {len(entries)} files is a text shard (first: {entries[0].name}); known endings are "
            f"{' '.join(SUFFIXES)}, also with .gz, .zst or .zip; or name one with input.format: {', '.join(FORMATS)}"
        )
    return Corpus(storage, tuple(files), ignored=len(entries) - len(files))


def _input_file(entry: FileEntry, format: Format | None) -> InputFile | None:
    kind = classify(entry.name, format)
    return InputFile(entry.name, entry.size, entry.version, kind[0], kind[1]) if kind else None


def _split_glob(address: str) -> tuple[str, str]:
    """``/data/2026-*/x.parquet`` → ``/data`` and ``2026-*/x.parquet``; no pattern if no part has a glob character."""
    scheme, separator, path = address.partition("://") if is_url(address) else ("", "", address)
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(character in part for character in GLOB_CHARACTERS):
            return scheme + separator + ("/".join(parts[:number]) or ("/" if path.startswith("/") else ".")), "/".join(
                parts[number:]
            )
    return address, ""


def _matches(name: str, pattern: str) -> bool:
    """Shell globbing part by part (``*`` stays within a folder), with ``**`` for any number of folders."""
    return re.match(glob_translate(pattern), name) is not None
