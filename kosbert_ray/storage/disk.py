"""Files on a local disk: atomic writes by way of temporary files, and removal of files left by dead writers."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

STALE_TMP_SECONDS = 600  # a temporary file of another host this old has no living writer
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def write(path: str, content: bytes | memoryview, tmp_folder: str) -> None:
    """Writes a file atomically and durably; an existing one is replaced."""
    with _temporary(path, content, tmp_folder) as tmp:
        os.replace(tmp, path)
    _sync_folder(os.path.dirname(path))


def create(path: str, content: bytes, tmp_folder: str) -> bool:
    """Creates a file atomically with link(2), which fails if the name is taken. Returns False if the file exists."""
    try:
        with _temporary(path, content, tmp_folder) as tmp:
            try:
                os.link(tmp, path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                # exFAT, SMB and FUSE mounts have no hard links: reserve the name with an empty file, then replace it.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                os.replace(tmp, path)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _temporary(path: str, content: bytes | memoryview, tmp_folder: str) -> Iterator[str]:
    """Writes ``content`` to a temporary file for ``path``, and removes that file at the end if it still exists."""
    os.makedirs(tmp_folder, exist_ok=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Independent of the file's own name, which might become too long for the file system.
    unique = f"{socket.gethostname()}~{os.getpid()}~{time.monotonic_ns()}~{secrets.token_hex(4)}"
    tmp = os.path.join(tmp_folder, unique)
    try:
        with open(tmp, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield tmp
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)


def sweep(tmp_folder: str) -> int:
    """Removes temporary files of dead writers and returns their number.

    A writer on this host is dead if its process is gone. One on another host, with a shared disk, counts as dead once its
    file is old.
    """
    swept = 0
    for path in Path(tmp_folder).glob("*~*~*~*"):
        host, pid, *_ = path.name.split("~")
        with contextlib.suppress(FileNotFoundError):
            if host == socket.gethostname():
                dead = not process_alive(int(pid))
            else:
                dead = time.time() - path.stat().st_mtime > STALE_TMP_SECONDS
            if dead:
                path.unlink()
                swept += 1
    return swept


def delete_empty(path: str, root: str) -> None:
    """Removes the folder ``path`` and its parents up to and including ``root``, as long as they are empty."""
    with contextlib.suppress(OSError):
        while len(path) >= len(root):
            os.rmdir(path)
            path = os.path.dirname(path)


def process_alive(pid: int) -> bool:
    """True if a process of this host is running, even one of another user."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: str) -> None:
    """Makes a rename in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
