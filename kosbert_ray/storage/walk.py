"""Lists the regular files in a folder on disk, following symbolic links without looping and without opening files.

Names that are not UTF-8 are escaped so that Parquet and JSON can hold them; ``unescape_name`` restores them.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from dataclasses import dataclass, field

from kosbert_ray.errors import StorageError, first_line

# A byte that is not UTF-8 becomes U+FFFD and two hex digits. Python represents such bytes as lone surrogates.
ESCAPED = re.compile("\ufffd([89A-F][0-9A-F])")
SURROGATE = re.compile("[\udc80-\udcff]")

Inode = tuple[int, int]  # device and inode; equal for all names of one file


@dataclass(frozen=True)
class FileEntry:
    """A file in a listing.

    Attributes:
        name: path relative to the root.
        size: size in bytes.
        version: a string that changes with the content: an etag or a modification time.
        inode: on disk, identifies the file behind the name.
        linked: on disk, True if the path contains a symbolic link.
    """

    name: str
    size: int
    version: str
    inode: Inode | None = field(default=None, compare=False, repr=False)
    linked: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True)
class Survey:
    """A listing, sorted by name.

    Attributes:
        entries: the regular files.
        skipped: one line for each entry that is not listed, with the reason.
        unreadable: one error for each folder that cannot be listed.
    """

    entries: tuple[FileEntry, ...]
    skipped: tuple[str, ...] = ()
    unreadable: tuple[StorageError, ...] = ()


def escape_name(name: str) -> str:
    """Escapes a file name so that it is valid UTF-8."""
    if name.isascii():  # most are, and a listing may have 100,000
        return name
    return SURROGATE.sub(lambda match: f"\ufffd{ord(match[0]) - 0xDC00:02X}", name)


def unescape_name(name: str) -> str:
    """Restores the file system's own name from an escaped one."""
    return ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), name)


def walk(root: str, start: str, recursive: bool) -> Survey:
    """Lists the files in ``start``, with names relative to ``root``; an empty listing if there is no such folder.

    Symbolic links are followed unless they lead to a folder that contains them.
    """
    entries: list[FileEntry] = []
    skipped: list[str] = []
    unreadable: list[StorageError] = []
    read: set[Inode] = set()
    # Folders to read: path, inodes of the parents, and whether the path contains a link. Linked folders come last, and
    # within them a link is followed only to a folder not read yet; otherwise links among n folders could give n! paths.
    folders: deque[tuple[str, tuple[Inode, ...], bool]] = deque([(start, (), False)])
    links: deque[tuple[str, tuple[Inode, ...], bool]] = deque()

    def shown(path: str) -> str:
        return escape_name(os.path.relpath(path, root))

    while folders or links:
        path, above, linked = folders.popleft() if folders else links.popleft()
        try:
            here = _inode(os.stat(path))
            if here in above:
                skipped.append(f"{shown(path)}: a symbolic link to one of its parent folders")
                continue
            read.add(here)
            with os.scandir(path) as children:
                found = sorted(children, key=lambda child: child.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            hint = "; check the permissions of the folder" if isinstance(error, PermissionError) else ""
            trouble = StorageError(f"{escape_name(path)}: cannot be listed ({error.strerror or first_line(error)}){hint}")
            trouble.__cause__ = error
            unreadable.append(trouble)
            continue
        folder = os.path.relpath(path, root)
        prefix = "" if folder == "." else f"{folder}/"
        for child in found:
            try:
                status = child.stat()
                is_link = child.is_symlink()
            except FileNotFoundError:  # a broken link, or just deleted
                continue
            except OSError as error:
                skipped.append(f"{shown(child.path)}: {error.strerror or first_line(error)}")
                continue
            if stat.S_ISDIR(status.st_mode):
                if recursive and not (is_link and linked and _inode(status) in read):
                    (links if is_link or linked else folders).append((child.path, (*above, here), linked or is_link))
            elif stat.S_ISREG(status.st_mode):
                name = escape_name(prefix + child.name)
                version = str(status.st_mtime_ns)
                entries.append(FileEntry(name, status.st_size, version, _inode(status), linked or is_link))
            else:
                skipped.append(f"{shown(child.path)}: not a regular file (a pipe, a socket or a device)")
    return Survey(tuple(sorted(entries, key=lambda entry: entry.name)), tuple(sorted(skipped)), tuple(unreadable))


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino
