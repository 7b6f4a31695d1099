"""A folder on disk or in an object store: list, read, write whole or not at all, and clean up after the dead."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.storage.failures import (
    CutShort,
    is_bucket_missing,
    is_expired,
    is_passing,
    is_refused,
    storage_errors,
)
from kosbert_ray.storage.options import StorageOptions, is_url
from kosbert_ray.storage.walk import FileEntry, Survey, unescape_name, walk

TMP_FOLDER = "_kosbert/tmp"
READ_BUFFER_BYTES = 2**20
STALE_TMP_SECONDS = 600  # a temporary file this old, from another host, has no living writer
EXTRAS = {"az": "az", "abfs": "az", "gs": "gs", "gcs": "gs"}
LOOKS_AT_ONCE = 16
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

# What an operation is waiting for is logged here, so that whoever runs it can show it.
log = logging.getLogger(__name__)

T = TypeVar("T")


def remote_address(address: str) -> bool:
    """True for an object store; a path and a ``file://`` URL lie on this machine."""
    return is_url(address) and not address.startswith("file://")


class Storage:
    """A folder (or file) on disk or in an object store.

    Args:
        address: a path or an ``s3://`` URL.
        options: how to reach an object store.

    Raises:
        StorageError: the scheme is unknown or the store's client is not installed.
    """

    def __init__(self, address: str, options: StorageOptions | None = None) -> None:
        self.options = options or StorageOptions()
        self.remote = remote_address(address)
        if self.remote:
            scheme = address.partition("://")[0]
            if "@" in address.partition("://")[2].partition("/")[0]:
                shown = f"{scheme}://…@{address.partition('@')[2]}"
                raise StorageError(f"{shown}: credentials do not belong in an address; use the AWS variables or storage.*")
            self.fs = self._connect(address)
            self.root = self.fs._strip_protocol(address).rstrip("/")
            self.address = f"{scheme}://{self.root}"
        else:
            self.fs = fsspec.filesystem("file")
            self.root = os.path.abspath(address.removeprefix("file://"))
            self.address = self.root

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.address, self.options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and (self.address, self.options) == (other.address, other.options)

    def __hash__(self) -> int:
        return hash((self.address, self.options))

    def patient(self, retry_seconds: float) -> Storage:
        """The same folder, for one who goes on trying that long when the store fails."""
        return Storage(self.address, replace(self.options, retry_seconds=retry_seconds))

    def _connect(self, address: str, **more: Any) -> Any:
        scheme = address.partition("://")[0]
        kwargs = self.options.s3fs_kwargs() if scheme in ("s3", "s3a") else {"use_listings_cache": False}
        try:
            return fsspec.filesystem(scheme, **kwargs, **more)
        except (ValueError, ImportError) as error:
            hint = f"; pip install 'kosbert-ray[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
            raise StorageError(f"{address}: cannot open {scheme}:// addresses ({first_line(error)}){hint}") from error
        except Exception as error:  # botocore: a profile that is not configured
            raise StorageError(f"{address}: {first_line(error)}") from error

    def _insist(self, name: str, operation: Callable[[], T]) -> T:
        """Runs ``operation`` until it succeeds, fails for good, or ``retry_seconds`` have passed.

        A local file system gets no second try: its failures do not pass by waiting. Credentials are read anew before
        each try, so that one who renews them in time loses nothing.

        Raises:
            StorageError: whatever it last failed with; its ``__cause__`` is the store's own error.
        """
        deadline = time.monotonic() + self.options.retry_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                with storage_errors(self.url(name)):
                    return operation()
            except StorageError as error:
                cause = error.__cause__
                if not self.remote or cause is None or not is_passing(cause) or time.monotonic() + pause > deadline:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                if is_expired(cause):
                    self.fs = self._connect(self.address, skip_instance_cache=True)

    def path(self, name: str) -> str:
        """The file system's own path of ``name``, which must stay below the root."""
        if any(part == ".." for part in name.split("/")):
            raise StorageError(f"{self.address}/{name}: a name may not climb out of its folder")
        if not self.remote:
            name = unescape_name(name)
        return f"{self.root}/{name}" if name else self.root

    def url(self, name: str = "") -> str:
        """``name`` as a person would write it."""
        return f"{self.address}/{name}" if name else self.address

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, name: str, ahead: int | None = None) -> IO[bytes]:
        """A seekable binary reader; on an object store it fetches ranges as they are read.

        Args:
            name: the file.
            ahead: how many bytes an object store is asked for beyond those that are read; None for its client's default,
                which suits a file that is read to its end.
        """
        more = {"block_size": ahead} if ahead is not None and self.remote else {}
        file: Any = self._insist(name, lambda: self.fs.open(self.path(name), "rb", **more))
        if not self.remote:
            return cast(IO[bytes], file)
        fetch = file.cache.fetcher

        def fetch_whole(start: int, stop: int) -> bytes:
            file.fs = self.fs
            content = bytes(fetch(start, stop))
            if len(content) < min(stop, file.size) - start:
                raise CutShort(f"got {len(content)} of {min(stop, file.size) - start} bytes")
            return content

        file.cache.fetcher = lambda start, stop: self._insist(name, lambda: fetch_whole(start, stop))
        # fsspec's remote files lack a part of Python's file interface (readline with a size).
        return io.BufferedReader(file, READ_BUFFER_BYTES)

    def read(self, name: str) -> bytes:
        """The whole content. Raises FileNotFoundError where there is none, so that a caller may take it for an answer."""
        try:
            return bytes(self._insist(name, lambda: self.fs.cat_file(self.path(name))))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not is_bucket_missing(error.__cause__):
                raise error.__cause__ from None
            raise

    def read_ends(self, sizes: Mapping[str, int], most: int) -> list[bytes | None]:
        """The last ``most`` bytes of files whose sizes are known, all asked for at once; None of one that gave trouble."""
        paths = [self.path(name) for name in sizes]
        starts = [max(0, size - most) for size in sizes.values()]
        found = self.fs.cat_ranges(paths, starts, list(sizes.values()), on_error="return")
        return [bytes(content) if isinstance(content, bytes) else None for content in found]

    def read_head(self, name: str, most: int) -> bytes:
        """The first ``most`` bytes of a file, by one request."""
        return bytes(self._insist(name, lambda: self.fs.cat_file(self.path(name), start=0, end=most)))

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of that name."""
        return bool(self._insist(name, lambda: self.fs.exists(self.path(name))))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that are not there: each is asked for, as a store's listings may be older than its files."""
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            there = list(pool.map(self.exists, names))
        return [name for name, found in zip(names, there, strict=True) if not found]

    def is_file(self, name: str = "") -> bool:
        """Whether it is a file."""
        return bool(self._insist(name, lambda: self.fs.isfile(self.path(name))))

    def entry(self, name: str = "") -> FileEntry:
        """The listing's line for one file."""
        if not self.remote:
            with storage_errors(self.url(name)):
                status = os.stat(self.path(name))
            return FileEntry(name, status.st_size, str(status.st_mtime_ns))
        info = self._insist(name, lambda: self.fs.info(self.path(name)))
        return FileEntry(name, int(info["size"]), _version(info))

    def list(self, folder: str = "", recursive: bool = False) -> Sequence[FileEntry]:
        """The files below ``folder``, sorted by name; none if there is no such folder."""
        survey = self.survey(folder, recursive)
        for trouble in survey.unreadable:
            raise trouble
        return survey.entries

    def survey(self, folder: str = "", recursive: bool = True) -> Survey:
        """As :meth:`list`, but what cannot be listed is part of the answer instead of an error."""
        if self.remote:
            entries = self._insist(folder, lambda: self._list_remote(folder, recursive))
            return Survey(tuple(sorted(entries, key=lambda entry: entry.name)))
        with storage_errors(self.url(folder)):
            return walk(self.root, self.path(folder), recursive)

    def _list_remote(self, folder: str, recursive: bool) -> Sequence[FileEntry]:
        path = self.path(folder)
        try:
            # Not find(maxdepth=1): that one takes a refused listing for an empty folder.
            found = self.fs.find(path, detail=True).values() if recursive else self.fs.ls(path, detail=True)
        except FileNotFoundError as error:
            if is_bucket_missing(error):
                raise
            return []
        prefix = len(self.root) + 1
        files = (info for info in found if info["type"] == "file" and len(info["name"]) >= prefix)
        return [FileEntry(info["name"][prefix:], int(info["size"] or 0), _version(info)) for info in files]

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_atomic(self, name: str, content: bytes | memoryview) -> None:
        """Puts ``content`` under ``name`` whole or not at all; an older file of that name is replaced."""
        if self.remote:
            self._insist(name, lambda: self.fs.pipe_file(self.path(name), bytes(content)))
            return
        with storage_errors(self.url(name)):
            with self._temporary(name, content) as tmp:
                os.replace(tmp, self.path(name))
            _sync_folder(os.path.dirname(self.path(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Writes ``content`` only if ``name`` does not exist yet: True if we were the one, False if it was there.

        On S3 by ``If-None-Match: *``, on disk by ``link(2)``, which fails where the name is taken. A store that refuses
        conditional writes is looked at first and then written to; one that ignores the condition replaces what is there.
        So the caller of two that may race reads back what it has created.
        """
        create = self._create_remote if self.remote else self._create_on_disk
        return self._insist(name, lambda: create(name, content))

    def _create_on_disk(self, name: str, content: bytes) -> bool:
        path = self.path(name)
        try:
            with self._temporary(name, content) as tmp:
                try:
                    os.link(tmp, path)
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    # exFAT, SMB and FUSE mounts have no hard links: claim the name first, then fill it.
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                    os.replace(tmp, path)
        except FileExistsError:
            return False
        return True

    def _create_remote(self, name: str, content: bytes) -> bool:
        path = self.path(name)
        try:
            self.fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs reports the refused condition as EINVAL; only a look tells it from another failure.
            if self.fs.exists(path):
                return False
            if isinstance(error, PermissionError | FileNotFoundError) or (is_passing(error) and not is_refused(error)):
                raise
            log.warning(
                "%s: the store refuses conditional writes; two runs that start at once may both claim it", self.address
            )
            self.fs.pipe_file(path, content)
        return True

    def replace(self, name: str, content: bytes, expected: bytes) -> bool:
        """Replaces ``name`` if it holds ``expected``: on S3 by ``If-Match``, elsewhere by a look before the write.

        Returns:
            Whether it was replaced.
        """
        if self.remote and not self._insist(name, lambda: self._replace_remote(name, content, expected)):
            return False
        if not self.remote:
            try:
                if self.read(name) != expected:
                    return False
            except FileNotFoundError:
                return False
            self.write_atomic(name, content)
        return True

    def _replace_remote(self, name: str, content: bytes, expected: bytes) -> bool:
        path = self.path(name)
        try:
            etag = str(self.fs.info(path).get("ETag", ""))
            if bytes(self.fs.cat_file(path)) != expected:
                return False
        except FileNotFoundError:
            return False
        try:
            self.fs.pipe_file(path, content, **({"IfMatch": etag} if etag and self._speaks_s3 else {}))
        except OSError as error:
            if isinstance(error, PermissionError) or (is_passing(error) and not is_refused(error)):
                raise
            if bytes(self.fs.cat_file(path)) != expected:
                return False
            self.fs.pipe_file(path, content)
        return True

    @property
    def _speaks_s3(self) -> bool:
        return self.address.startswith(("s3://", "s3a://"))

    def modified(self, name: str) -> float | None:
        """When a file was last written, in Unix seconds by the store's own clock; None if it is unknown."""
        try:
            info = self._insist(name, lambda: self.fs.info(self.path(name)))
        except StorageError:
            return None
        when: Any = next((value for key in ("LastModified", "last_modified", "mtime") if (value := info.get(key))), None)
        if isinstance(when, datetime):
            return when.timestamp()
        return float(when) if isinstance(when, int | float) else None

    def delete(self, names: Sequence[str]) -> None:
        """Removes files; one that is already gone is no error."""
        for name in names:
            self._insist(name, partial(self._delete, name))

    def delete_folder(self, name: str) -> None:
        """Removes a folder with all that is in it, if there is one."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(self.path(name), recursive=True)

        try:
            self._insist(name, remove)
        except StorageError as error:
            if not self.remote or isinstance(error.__cause__, PermissionError):
                raise
            # Some stores take no request that deletes many at once.
            self.delete([entry.name for entry in self.list(name, recursive=True)])

    def delete_empty(self, name: str) -> None:
        """Removes a folder and those above it, the root included, as far as they are empty; a store has none."""
        if self.remote:
            return
        path = self.path(name)
        with contextlib.suppress(OSError):
            while len(path) >= len(self.root):
                os.rmdir(path)
                path = os.path.dirname(path)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def _temporary(self, name: str, content: bytes | memoryview) -> Iterator[str]:
        folder = self.path(TMP_FOLDER)
        os.makedirs(folder, exist_ok=True)
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        # Not the file's own name: with what is added it could be longer than a file system allows.
        unique = f"{socket.gethostname()}~{os.getpid()}~{time.monotonic_ns()}~{secrets.token_hex(4)}"
        tmp = os.path.join(folder, unique)
        try:
            with open(tmp, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield tmp
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(tmp)

    def sweep(self) -> int:
        """Removes the temporary files of writers that are gone; gives their number. S3 has none: its PUTs are atomic.

        A writer of this host is gone when its process is; one of another host (a shared disk) when its file is old.
        """
        if self.remote:
            return 0
        swept = 0
        for path in Path(self.path(TMP_FOLDER)).glob("*~*~*~*"):
            host, pid, *_ = path.name.split("~")
            with contextlib.suppress(FileNotFoundError):
                ours = host == socket.gethostname()
                gone = not process_alive(int(pid)) if ours else time.time() - path.stat().st_mtime > STALE_TMP_SECONDS
                if gone:
                    path.unlink()
                    swept += 1
        return swept


def _version(info: dict[str, Any]) -> str:
    """What an object store's listing knows that changes with the content: the etag, else the time."""
    names = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "mtime")
    return str(next((value for name in names if (value := info.get(name))), "")).strip('"')


def process_alive(pid: int) -> bool:
    """Whether a process of this host runs, be it another user's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: str) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
