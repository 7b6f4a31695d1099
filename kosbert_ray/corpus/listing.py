"""Lists the corpus: turns INPUT (a file, a folder, a glob, an s3:// URL) into a sorted list of input files."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fsspec.utils import glob_translate

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.folders import check_folders
from kosbert_ray.corpus.formats.table import FORMATS, format_of_suffix
from kosbert_ray.errors import InputError, StorageError, shown_names
from kosbert_ray.storage import FileEntry, Storage, StorageOptions, Survey, is_url
from kosbert_ray.units import plural

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
GLOB_CHARACTERS = "*?["
JSON_SUFFIX = ".json"  # JSON lines or one document; taken for JSON lines only if there are no other input files


@dataclass(frozen=True)
class FailedFile:
    """A file (or folder) that cannot be embedded; ``reason`` is one line that begins with its address."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The input folder and the files in it to embed, sorted by name.

    Attributes:
        storage: the input folder.
        files: the files to embed.
        ignored: names of files with an unsupported extension.
        failed: what cannot be embedded and is not among ``files``; the run embeds the other files and then fails.
        notices: remarks for the user about how the input is read, one line each.
        whole: whether the input is a folder, rather than a file or a glob.
    """

    storage: Storage
    files: tuple[InputFile, ...]
    ignored: tuple[str, ...] = ()
    failed: tuple[FailedFile, ...] = ()
    notices: tuple[str, ...] = ()
    whole: bool = False

    @cached_property
    def size(self) -> int:
        """Total bytes of the files, as stored."""
        return sum(file.size for file in self.files)

    @cached_property
    def ignored_endings(self) -> dict[str, int]:
        """Number of ignored files per extension, the most frequent first."""
        endings = Counter(posixpath.splitext(name.lower())[1] or "no ending" for name in self.ignored)
        return dict(endings.most_common())

    def ignored_line(self) -> str:
        """One line about the ignored files; empty if there are none."""
        if not self.ignored:
            return ""
        endings = ", ".join(f"{count:,} {ending}" for ending, count in list(self.ignored_endings.items())[:5])
        more = ", …" if len(self.ignored_endings) > 5 else ""
        hint = ""
        if any(ending in self.ignored_endings for ending in (JSON_SUFFIX, ".bz2", ".xz")):
            hint = "; rename JSON lines to .jsonl, and recompress .bz2 and .xz as .gz or .zst, to include them"
        return (
            f"{self.storage.url()}: skipped {plural(len(self.ignored), 'file')} with an unsupported extension "
            f"({endings}{more}: {shown_names(self.ignored)}){hint}"
        )


def classify(name: str, format: str | None = None) -> tuple[str, str | None] | None:
    """Returns a file's format and compression by its name, or None if it is not an input file.

    Args:
        name: the file's name.
        format: overrides the format that the name says.
    """
    suffix, compression = _suffixes(name)
    kind = format or format_of_suffix(suffix)
    if kind is None or (compression and not FORMATS[kind].lines):
        return None
    return kind, compression


def _suffixes(name: str) -> tuple[str, str | None]:
    """The extension of a name without that of the compression, and the compression."""
    base, suffix = posixpath.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    return (posixpath.splitext(base)[1], compression) if compression else (suffix, None)


def hidden(name: str) -> bool:
    """True for paths that Arrow, Spark and DuckDB skip (a part starts with ``_`` or ``.``) and for a disk's lost+found."""
    return any(part.startswith(("_", ".")) or part == "lost+found" for part in name.split("/"))


def list_corpus(address: str, options: StorageOptions | None = None, format: str | None = None) -> Corpus:
    """Lists the input files of ``address``.

    Args:
        address: a file, a folder (searched recursively) or a glob; on disk or ``s3://``. Names that start with ``_`` or
            ``.`` are skipped unless a glob spells them out.
        options: how to reach the object store.
        format: read every file as this format, whatever its name.

    Raises:
        StorageError: the path does not exist, or the store refuses access.
        InputError: there are no input files, or a folder is a table whose files are not its rows.
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
        raise InputError(f"{address}: the folder contains no files" + "".join(f" ({line})" for line in survey.skipped[:1]))
    entries, notices = check_folders(storage, survey.entries, entries, strict=not pattern)
    notices = [*_shortened([line for line in survey.skipped if not hidden(line.partition(": ")[0])]), *notices]
    if not entries:
        raise InputError(f"{address}: no files are left to embed ({notices[-1]})")
    failed = [
        FailedFile(name, str(trouble))
        for trouble in survey.unreadable
        if not hidden(name := _below(storage, trouble)) and (not pattern or _may_contain(name, pattern))
    ]
    for entry in entries:
        if problem := _compressed_again(entry.name, format):
            failed.append(FailedFile(entry.name, f"{storage.url(entry.name)}: {problem}"))
    broken = {file.name for file in failed}
    entries = [entry for entry in entries if entry.name not in broken]
    kinds = {entry.name: kind for entry in entries if (kind := classify(entry.name, format))}
    if not kinds and not failed:  # a .json file may hold JSON lines
        kinds = {entry.name: (format or "jsonl", _suffixes(entry.name)[1]) for entry in entries if _is_json(entry.name)}
    ignored = tuple(entry.name for entry in entries if entry.name not in kinds)
    shards, duplicates = _without_duplicates([entry for entry in entries if entry.name in kinds])
    files = [InputFile(entry.name, entry.size, entry.version, *kinds[entry.name]) for entry in shards]
    if not files and failed:
        raise InputError(failed[0].reason)
    if not files:
        suffixes = [suffix for info in FORMATS.values() for suffix in info.suffixes]
        raise InputError(
            f"{address}: no file with a supported extension "
            f"({plural(len(entries), 'file')}: {shown_names([entry.name for entry in entries])}); "
            f"supported are {' '.join(suffixes)}, also with .gz, .zst or .zip; or set input.format to one of "
            f"{', '.join(FORMATS)}"
        )
    return Corpus(storage, tuple(files), ignored, tuple(failed), (*notices, *duplicates), whole)


def forced_format(file: InputFile) -> bool:
    """True if a file has its format from ``input.format`` and not from its name."""
    return not _is_json(file.name) and format_of_suffix(_suffixes(file.name)[0]) != file.format


def _survey(address: str, options: StorageOptions | None) -> tuple[Storage, str, Survey, bool]:
    """The folder of an address, the pattern that its files must match, its content, and whether all of it is the input."""
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
    exists = not storage.remote and os.path.exists(storage.root)
    if not pattern and exists and not os.path.isdir(storage.root):
        raise InputError(f"{address}: neither a regular file nor a folder; write it to a file first")
    return storage, pattern, survey, not pattern


def _compressed_again(name: str, format: str | None) -> str | None:
    """The reason why a compressed file of a format that cannot be decompressed as a stream cannot be read; else None."""
    suffix, compression = _suffixes(name)
    kind = format or format_of_suffix(suffix)
    if compression is None or kind is None or FORMATS[kind].lines:
        return None
    source = f" (input.format={format})" if format else ""
    return f"a compressed {kind} file{source}, which cannot be read from its end; decompress it first"


def _is_json(name: str) -> bool:
    return _suffixes(name)[0] == JSON_SUFFIX


def _without_duplicates(entries: Sequence[FileEntry]) -> tuple[list[FileEntry], list[str]]:
    """The entries without further names of the same file, and a notice about those."""
    first: dict[object, FileEntry] = {}
    # A path without a link is a file's own name.
    for entry in sorted(entries, key=lambda entry: (entry.linked, entry.name)):
        first.setdefault(entry.inode or entry.name, entry)
    kept = {entry.name for entry in first.values()}
    seconds = [entry for entry in entries if entry.name not in kept]
    if not seconds:
        return list(entries), []
    one = seconds[0]
    notice = f"skipped {plural(len(seconds), 'link')} to files that are read anyway ({one.name} is {first[one.inode].name})"
    return [entry for entry in entries if entry.name in kept], [notice]


def _may_contain(folder: str, pattern: str) -> bool:
    """True if names below a folder may match a glob."""
    parts, depth = pattern.split("/"), folder.count("/") + 1
    return "**" in pattern or (len(parts) > depth and _matches(folder, "/".join(parts[:depth])))


def _shortened(lines: Sequence[str]) -> list[str]:
    """The first lines, and the number of the others."""
    shown = [f"skipped {line}" for line in lines[:3]]
    return [*shown, f"skipped {len(lines) - 3:,} more like these"] if len(lines) > 3 else shown


def _below(storage: Storage, trouble: StorageError) -> str:
    address = str(trouble).partition(": ")[0]
    return address.removeprefix(f"{storage.address}/")


def _split_glob(address: str) -> tuple[str, str]:
    """``/data/2026-*/x.parquet`` → ``/data`` and ``2026-*/x.parquet``; no pattern if no part has a glob character."""
    scheme, separator, path = address.partition("://") if is_url(address) else ("", "", address)
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(character in part for character in GLOB_CHARACTERS):
            folder = "/".join(parts[:number]) or ("/" if path.startswith("/") else ".")
            return scheme + separator + folder, "/".join(parts[number:])
    return address, ""


def _matches(name: str, pattern: str) -> bool:
    """Shell globbing part by part (``*`` stays within a folder), with ``**`` for any number of folders."""
    return re.match(glob_translate(pattern), name) is not None
