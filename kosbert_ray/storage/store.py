"""A folder on disk or in an object store: lists, reads, writes atomically and deletes."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import fsspec

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import disk, remote
from kosbert_ray.storage.failures import ShortRead, is_bucket_missing, storage_errors
from kosbert_ray.storage.options import FAIL_FAST, StorageOptions, is_url
from kosbert_ray.storage.retry import retry
from kosbert_ray.storage.walk import FileEntry, Survey, escape_name, unescape_name, walk

if TYPE_CHECKING:
    import pyarrow.fs

TMP_FOLDER = "_kosbert/tmp"
READ_BUFFER_BYTES = 2**20
PARALLEL_REQUESTS = 16

T = TypeVar("T")


def remote_address(address: str) -> bool:
    """True for an object store, False for a path or a ``file://`` URL on this machine."""
    return is_url(address) and not address.startswith("file://")


class Storage:
    """A folder (or a file) on disk or in an object store. Names are relative to it.

    Args:
        address: a path or a URL such as ``s3://bucket/folder``.
        options: options of the object store.

    Raises:
        StorageError: the scheme is unknown, its client is not installed, or the address holds credentials.
    """

    def __init__(self, address: str, options: StorageOptions | None = None) -> None:
        self.options = options or FAIL_FAST
        self.remote = remote_address(address)
        if self.remote:
            scheme = address.partition("://")[0]
            if "@" in address.partition("://")[2].partition("/")[0]:
                shown = f"{scheme}://…@{address.partition('@')[2]}"
                raise StorageError(f"{shown}: credentials do not belong in an address; use the AWS variables or storage.*")
            self.fs = remote.connect(address, self.options)
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

    def with_retries(self, seconds: float) -> Storage:
        """Returns the same folder with another ``retry_seconds``: how long to retry while the store fails."""
        return Storage(self.address, self.options.model_copy(update={"retry_seconds": seconds}))

    def _retry(self, name: str, operation: Callable[[], T]) -> T:
        """Runs an operation on ``name``, with retries on an object store. Failures of a disk do not pass by waiting.

        Raises:
            StorageError: the last failure; its ``__cause__`` is the store's own error.
        """
        if not self.remote:
            with storage_errors(self.url(name)):
                return operation()
        return retry(operation, self.url(name), self.options.retry_seconds, self._reconnect)

    def _reconnect(self) -> None:
        """Connects again, with the credentials found now."""
        self.fs = remote.connect(self.address, self.options, skip_instance_cache=True)

    def path(self, name: str) -> str:
        """Returns the file system's own path for ``name``; raises StorageError if it contains ``..``."""
        if any(part == ".." for part in name.split("/")):
            raise StorageError(f"{self.address}/{name}: a name must not contain '..'")
        if not self.remote:
            name = unescape_name(name)
        return f"{self.root}/{name}" if name else self.root

    def url(self, name: str = "") -> str:
        """Returns the full address of ``name``."""
        return f"{self.address}/{name}" if name else self.address

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, name: str, ahead: int | None = None) -> IO[bytes]:
        """Opens a file for seekable binary reading. From an object store, ranges are fetched as they are read.

        Args:
            name: the file.
            ahead: bytes that an object store reads ahead. None is the client's default, which suits files that are read
                to the end.
        """
        more = {"block_size": ahead} if ahead is not None and self.remote else {}
        file: Any = self._retry(name, lambda: self.fs.open(self.path(name), "rb", **more))
        if not self.remote:
            return cast(IO[bytes], file)

        fetch = file.cache.fetcher

        def fetch_range(start: int, stop: int) -> bytes:
            file.fs = self.fs  # a retry may have connected again
            content = bytes(fetch(start, stop))
            expected = min(stop, file.size) - start
            if len(content) < expected:
                raise ShortRead(f"received {len(content)} of {expected} bytes")
            return content

        file.cache.fetcher = lambda start, stop: self._retry(name, lambda: fetch_range(start, stop))
        # fsspec's remote files lack parts of Python's file interface (readline with a size).
        return io.BufferedReader(file, READ_BUFFER_BYTES)

    def read(self, name: str) -> bytes:
        """Reads a whole file; raises FileNotFoundError, not StorageError, if it does not exist."""
        try:
            return bytes(self._retry(name, lambda: self.fs.cat_file(self.path(name))))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not is_bucket_missing(error.__cause__):
                raise error.__cause__ from None
            raise

    def read_ends(self, sizes: Mapping[str, int], most: int) -> list[bytes | None]:
        """Reads the last ``most`` bytes of files of known sizes in parallel; None for each one that cannot be read."""
        paths = [self.path(name) for name in sizes]
        starts = [max(0, size - most) for size in sizes.values()]
        found = self.fs.cat_ranges(paths, starts, list(sizes.values()), on_error="return")
        return [bytes(content) if isinstance(content, bytes) else None for content in found]

    @cached_property
    def arrow(self) -> pyarrow.fs.FileSystem | None:
        """A file system of Arrow for :meth:`path`: of this machine, or of S3 if Arrow can reach the bucket.

        It does not connect again and soon gives up; read again with this class what it fails to read.
        """
        if self.remote:
            return remote.arrow_filesystem(self.fs, self.address, self.options)
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def read_head(self, name: str, most: int) -> bytes:
        """Reads the first ``most`` bytes of a file in one request."""
        return bytes(self._retry(name, lambda: self.fs.cat_file(self.path(name), start=0, end=most)))

    def exists(self, name: str = "") -> bool:
        """True if there is a file or folder of that name."""
        return bool(self._retry(name, lambda: self.fs.exists(self.path(name))))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that do not exist. Each is requested, since a store's listing may be out of date."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            found = list(pool.map(self.exists, names))
        return [name for name, exists in zip(names, found, strict=True) if not exists]

    def is_file(self, name: str = "") -> bool:
        """True if ``name`` is a file."""
        return bool(self._retry(name, lambda: self.fs.isfile(self.path(name))))

    def entry(self, name: str = "") -> FileEntry:
        """Returns size and version of one file."""
        if not self.remote:
            with storage_errors(self.url(name)):
                status = os.stat(self.path(name))
            return FileEntry(name, status.st_size, str(status.st_mtime_ns))
        info = self._retry(name, lambda: self.fs.info(self.path(name)))
        return FileEntry(name, int(info["size"]), remote.version_of(info))

    def modified(self, name: str) -> float | None:
        """Returns a file's modification time in Unix seconds, by the store's clock; None if it is unknown."""
        try:
            return remote.modified(self._retry(name, lambda: self.fs.info(self.path(name))))
        except StorageError:
            return None

    def list(self, folder: str = "", recursive: bool = False) -> Sequence[FileEntry]:
        """Lists the files in ``folder``, sorted by name; an empty sequence if there is no such folder.

        Raises:
            StorageError: a folder cannot be listed.
        """
        survey = self.survey(folder, recursive)
        for error in survey.unreadable:
            raise error
        return survey.entries

    def scan(self) -> Iterator[str]:
        """Yields the names of the files in the folder itself: on a disk as they are found, in no order."""
        if self.remote:
            yield from (entry.name for entry in self.list())
            return
        with storage_errors(self.url()), contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            yield from (escape_name(entry.name) for entry in entries if entry.is_file())

    def survey(self, folder: str = "", recursive: bool = True) -> Survey:
        """Lists the files in ``folder`` like :meth:`list`, but returns errors of single folders instead of raising."""
        if self.remote:
            entries = self._retry(folder, lambda: remote.list_files(self.fs, self.path(folder), self.root, recursive))
            return Survey(tuple(sorted(entries, key=lambda entry: entry.name)))
        with storage_errors(self.url(folder)):
            return walk(self.root, self.path(folder), recursive)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_atomic(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file completely or not at all; an existing one is replaced."""
        if self.remote:
            self._retry(name, lambda: self.fs.pipe_file(self.path(name), bytes(content)))
            return
        with storage_errors(self.url(name)):
            disk.write(self.path(name), content, self.path(TMP_FOLDER))

    def copy_in(self, name: str, path: Path) -> None:
        """Copies a file of this machine of any size completely or not at all; an existing one is replaced."""
        if self.remote:
            self._retry(name, lambda: self.fs.put_file(str(path), self.path(name)))
        elif not path.stat().st_size:
            self.write_atomic(name, b"")
        else:
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
                memoryview(content) as view,
            ):
                self.write_atomic(name, view)

    def copy_out(self, name: str, path: Path) -> None:
        """Copies a file of any size to this machine."""
        if self.remote:
            self._retry(name, lambda: self.fs.get_file(self.path(name), str(path)))
            return
        with storage_errors(self.url(name)):
            shutil.copyfile(self.path(name), path)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file only if it does not exist; returns False if it does.

        Callers that may race must read back what they created: a store without conditional writes is checked before the
        write, and one that ignores conditions replaces the file.
        """
        if self.remote:
            return self._retry(name, lambda: remote.create(self.fs, self.path(name), content, self.address))
        return self._retry(name, lambda: disk.create(self.path(name), content, self.path(TMP_FOLDER)))

    def replace(self, name: str, content: bytes, expected: bytes) -> bool:
        """Replaces a file only if it holds ``expected``; returns False if it does not.

        S3 checks this with ``If-Match``. Elsewhere the file is read before the write.
        """
        if self.remote:
            if_match = self.address.partition("://")[0] in remote.S3_SCHEMES
            return self._retry(name, lambda: remote.replace(self.fs, self.path(name), content, expected, if_match))
        try:
            if self.read(name) != expected:
                return False
        except FileNotFoundError:
            return False
        self.write_atomic(name, content)
        return True

    def delete(self, names: Sequence[str]) -> None:
        """Deletes files; missing ones are ignored."""
        for name in names:
            self._retry(name, partial(self._delete, name))

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Deletes a folder with everything in it, if it exists."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(self.path(name), recursive=True)

        try:
            self._retry(name, remove)
        except StorageError as error:
            if not self.remote or isinstance(error.__cause__, PermissionError):
                raise
            # Some stores do not support deleting many files in one request.
            self.delete([entry.name for entry in self.list(name, recursive=True)])

    def delete_empty(self, name: str) -> None:
        """Deletes a folder and its parents up to the root, as long as they are empty. Object stores have no folders."""
        if not self.remote:
            disk.delete_empty(self.path(name), self.root)

    def sweep(self) -> int:
        """Deletes temporary files of dead writers and returns their number. Object stores need no temporary files."""
        return 0 if self.remote else disk.sweep(self.path(TMP_FOLDER))
