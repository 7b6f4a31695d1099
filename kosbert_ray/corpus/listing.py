"""Which files are the corpus: INPUT (a file, a folder, a glob, an s3:// URL) becomes a sorted list of InputFile."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from fsspec.utils import glob_translate

from kosbert_ray.corpus.folders import check_folders
from kosbert_ray.errors import InputError, StorageError, shown_names
from kosbert_ray.storage import FileEntry, Storage, StorageOptions, Survey, is_url

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
LINES_IN_JSON = ".json"  # may hold JSON lines or one document; taken for lines only where nothing else is a text shard


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
class FailedFile:
    """A file (or folder) that cannot be embedded; ``reason`` is one line that begins with its address."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The input folder and the files in it that are to be embedded, sorted by name.

    Attributes:
        storage: the input folder.
        files: the text shards.
        ignored: names of the files that are no text shards.
        failed: what cannot be embedded and is not among ``files``: the run embeds the others and then fails.
        notices: what the user should know of how the input is read, a line each.
        whole: whether it is a folder of which all text shards are read, not a file or a glob.
    """

    storage: Storage
    files: tuple[InputFile, ...]
    ignored: tuple[str, ...] = ()
    failed: tuple[FailedFile, ...] = ()
    notices: tuple[str, ...] = ()
    whole: bool = False

    @cached_property
    def size(self) -> int:
        """Bytes of all files, as stored."""
        return sum(file.size for file in self.files)

    @cached_property
    def ignored_endings(self) -> dict[str, int]:
        """How many files of each ending are ignored, the most frequent first."""
        endings = Counter(posixpath.splitext(name.lower())[1] or "no ending" for name in self.ignored)
        return dict(endings.most_common())

    def ignored_line(self) -> str:
        """One line about the ignored files; empty if there are none."""
        if not self.ignored:
            return ""
        endings = ", ".join(f"{count:,} {ending}" for ending, count in list(self.ignored_endings.items())[:5])
        more = ", …" if len(self.ignored_endings) > 5 else ""
        hint = ""
        if any(ending in self.ignored_endings for ending in (LINES_IN_JSON, ".bz2", ".xz")):
            hint = "; rename JSON lines to .jsonl, and recompress .bz2 and .xz as .gz or .zst, to include them"
        return (
            f"{self.storage.url()}: skipped {len(self.ignored):,} files with an unsupported extension "
            f"({endings}{more}: {shown_names(self.ignored)}){hint}"
        )


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
    """True for what Arrow, Spark and DuckDB skip too, names that start with ``_`` or ``.``, and for a disk's lost+found."""
    return any(part.startswith(("_", ".")) or part == "lost+found" for part in name.split("/"))


def list_corpus(address: str, options: StorageOptions | None = None, format: Format | None = None) -> Corpus:
    """Lists the text shards of ``address``.

    Args:
        address: a file, a folder (searched through) or a glob; on disk or ``s3://``. Names that start with ``_`` or ``.``
            are left out unless a glob spells them.
        options: how to reach the object store.
        format: read every file as this, whatever its name.

    Raises:
        StorageError: there is no such path, or the store refuses.
        InputError: nothing there is a text shard, or a folder is a table whose files are not its rows.
    """
    storage, pattern, survey, whole = _survey(address, options)
    entries = [entry for entry in survey.entries if not hidden(entry.name) or hidden(pattern)]
    if pattern:
        entries = [entry for entry in entries if _matches(entry.name, pattern)]
        if not entries:
            raise InputError(f"{address}: no file matches")
    elif not entries:
        for trouble in survey.unreadable:
            raise trouble
        raise InputError(f"{address}: the folder holds no files" + "".join(f" ({line})" for line in survey.skipped[:1]))
    entries, notices = check_folders(storage, survey.entries, entries, strict=not pattern)
    notices = [*_shortened([line for line in survey.skipped if not hidden(line.partition(": ")[0])]), *notices]
    if not entries:
        raise InputError(f"{address}: no files are left to embed ({notices[-1]})")
    failed = [
        FailedFile(name, str(trouble))
        for trouble in survey.unreadable
        if not hidden(name := _below(storage, trouble)) and (not pattern or _may_hold(name, pattern))
    ]
    for entry in entries:
        if problem := wrapped(entry.name, format):
            failed.append(FailedFile(entry.name, f"{storage.url(entry.name)}: {problem}"))
    broken = {file.name for file in failed}
    entries = [entry for entry in entries if entry.name not in broken]
    shards = [entry for entry in entries if classify(entry.name, format)]
    if not shards and not failed:
        shards = [entry for entry in entries if _json_lines(entry.name)]
    names = {entry.name for entry in shards}
    ignored = tuple(entry.name for entry in entries if entry.name not in names)
    shards, twice = _once(shards)
    files = [file for entry in shards if (file := _input_file(entry, format or _json_lines(entry.name)))]
    if not files and failed:
        raise InputError(failed[0].reason)
    if not files:
        raise InputError(
            f"{address}: none of its {len(entries)} files is a text shard "
            f"(first: {shown_names([entry.name for entry in entries])}); "
            f"known endings are {' '.join(SUFFIXES)}, also with .gz, .zst or .zip; or name one with input.format: "
            f"{', '.join(FORMATS)}"
        )
    return Corpus(storage, tuple(files), ignored, tuple(failed), (*notices, *twice), whole)


def _survey(address: str, options: StorageOptions | None) -> tuple[Storage, str, Survey, bool]:
    """The folder that an address means, the pattern that its files must match, what it holds, whether all of it counts."""
    folder, pattern = _split_glob(address)
    if pattern and (whole := Storage(address, options)).exists():
        folder, pattern = address, ""  # the brackets are part of a name
        storage = whole
    else:
        storage = Storage(folder, options)
    if not pattern and storage.is_file():
        parent, _, name = storage.address.rpartition("/")
        storage = Storage(parent or "/", options)
        return storage, "", Survey((storage.entry(name),)), False
    survey = storage.survey()
    if not pattern and not survey.entries and not survey.unreadable and not storage.exists():
        raise StorageError(f"{address}: no such file or folder")
    there = not storage.remote and os.path.exists(storage.root)
    if not pattern and there and not os.path.isdir(storage.root):
        raise InputError(f"{address}: neither a regular file nor a folder; write it to a file first")
    return storage, pattern, survey, not pattern


def wrapped(name: str, format: Format | None = None) -> str | None:
    """The reason why a compressed Parquet or Arrow file cannot be read; None for all others."""
    base, suffix = posixpath.splitext(name.lower())
    kind = format or SUFFIXES.get(posixpath.splitext(base)[1])
    if suffix in COMPRESSIONS and kind in BINARY:
        return f"a {kind} file compressed once more, which cannot be read from its end; decompress it first"
    return None


def _json_lines(name: str) -> Format | None:
    base, suffix = posixpath.splitext(name.lower())
    if suffix in COMPRESSIONS:
        suffix = posixpath.splitext(base)[1]
    return "jsonl" if suffix == LINES_IN_JSON else None


def _once(entries: Sequence[FileEntry]) -> tuple[list[FileEntry], list[str]]:
    """The entries without second names of the same file, and notices of those."""
    first: dict[object, FileEntry] = {}
    # A name that leads through no link is the file's own.
    for entry in sorted(entries, key=lambda entry: (entry.linked, entry.name)):
        first.setdefault(entry.inode or entry.name, entry)
    kept = {entry.name for entry in first.values()}
    seconds = [entry for entry in entries if entry.name not in kept]
    if not seconds:
        return list(entries), []
    one = seconds[0]
    notice = (
        f"{len(seconds):,} names are links to files that are read under another name and are skipped "
        f"({one.name} is {first[one.inode].name})"
    )
    return [entry for entry in entries if entry.name in kept], [notice]


def _may_hold(folder: str, pattern: str) -> bool:
    """Whether names below a folder may match a glob."""
    parts, depth = pattern.split("/"), folder.count("/") + 1
    return "**" in pattern or (len(parts) > depth and _matches(folder, "/".join(parts[:depth])))


def _shortened(lines: Sequence[str]) -> list[str]:
    """The first few lines, and how many more there are."""
    shown = [f"skipped {line}" for line in lines[:3]]
    return [*shown, f"skipped {len(lines) - 3:,} more of this kind"] if len(lines) > 3 else shown


def _below(storage: Storage, trouble: StorageError) -> str:
    address = str(trouble).partition(": ")[0]
    return address.removeprefix(f"{storage.address}/")


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
