"""One way to reach files, on disk or in an object store, for every room of the house.

Comes in: a path or URL (``/data/x``, ``s3://bucket/x``) and :class:`StorageOptions`. Goes out: :class:`Storage`, a folder
one can list, read from, and write to atomically; whatever goes wrong there surfaces as one line (:class:`StorageError`).
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec

from kosbert_ray.errors import StorageError

TMP_FOLDER = "_kosbert/tmp"
READ_BUFFER_BYTES = 2**20
STALE_TMP_SECONDS = 600  # a temporary file this old, from another host, has no living writer


@dataclass(frozen=True)
class StorageOptions:
    """How to reach an object store. Empty fields fall back to the usual AWS variables and files.

    ``retries`` is how often a failed request is sent again, with exponential backoff (botocore's "standard" mode).
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    retries: int = 8

    def s3fs_kwargs(self) -> dict[str, Any]:
        """The same options as ``s3fs.S3FileSystem`` names them."""
        client: dict[str, Any] = {}
        if self.region or os.environ.get("AWS_REGION"):
            client["region_name"] = self.region or os.environ["AWS_REGION"]
        kwargs: dict[str, Any] = {
            "anon": self.anonymous,
            "client_kwargs": client,
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": self.retries},
                "connect_timeout": 10,
                "read_timeout": 60,
            },
            # Another run may write beside us: a remembered listing would be a wrong one.
            "use_listings_cache": False,
        }
        named = {
            "endpoint_url": self.endpoint_url,
            "profile": self.profile,
            "key": self.access_key_id,
            "secret": self.secret_access_key,
            "token": self.session_token,
        }
        return kwargs | {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class FileEntry:
    """A file as a listing shows it: path below the root, bytes, and what changes when its content does."""

    name: str
    size: int
    version: str


def is_url(path: str) -> bool:
    """True for ``scheme://…``; everything else is a path on this machine."""
    return "://" in path


@contextlib.contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turns what fsspec, s3fs and the operating system raise into a :class:`StorageError` that names ``address``."""
    try:
        yield
    except FileNotFoundError as error:
        what = "bucket" if _is_bucket_missing(error) else "file or folder"
        raise StorageError(f"{address}: no such {what}") from error
    except PermissionError as error:
        raise StorageError(f"{address}: permission denied ({_first_line(error)}); check the credentials") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{address}: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise StorageError(f"{address}: {_first_line(error)}") from error
        raise


def _is_bucket_missing(error: FileNotFoundError) -> bool:
    """Whether s3fs means the bucket, by the code of the store's answer behind its error."""
    answer = getattr(error.__cause__, "response", {})
    return bool(answer.get("Error", {}).get("Code") == "NoSuchBucket")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


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
        self.remote = is_url(address) and not address.startswith("file://")
        if self.remote:
            scheme = address.partition("://")[0]
            kwargs = self.options.s3fs_kwargs() if scheme in ("s3", "s3a") else {}
            try:
                self.fs = fsspec.filesystem(scheme, **kwargs)
            except (ValueError, ImportError) as error:
                raise StorageError(f"{address}: cannot open {scheme}:// addresses ({_first_line(error)})") from error
            except Exception as error:  # botocore: a profile that is not configured
                raise StorageError(f"{address}: {_first_line(error)}") from error
            self.root = self.fs._strip_protocol(address).rstrip("/")
            self.address = f"{scheme}://{self.root}"
        else:
            self.fs = fsspec.filesystem("file")
            self.root = os.path.abspath(address.removeprefix("file://"))
            self.address = self.root

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.address, self.options))

    def path(self, name: str) -> str:
        """The file system's own path of ``name``, which must stay below the root."""
        if any(part == ".." for part in name.split("/")):
            raise StorageError(f"{self.address}/{name}: a name may not climb out of its folder")
        return f"{self.root}/{name}" if name else self.root

    def url(self, name: str = "") -> str:
        """``name`` as a person would write it."""
        return f"{self.address}/{name}" if name else self.address

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, name: str) -> IO[bytes]:
        """A seekable binary reader; on an object store it fetches ranges as they are read."""
        with storage_errors(self.url(name)):
            file = self.fs.open(self.path(name), "rb")
        # fsspec's remote files lack a part of Python's file interface (readline with a size).
        return io.BufferedReader(file, READ_BUFFER_BYTES) if self.remote else file

    def read(self, name: str) -> bytes:
        """The whole content. Raises FileNotFoundError where there is none, so that a caller may take it for an answer."""
        try:
            return bytes(self.fs.cat_file(self.path(name)))
        except FileNotFoundError:
            raise
        except Exception:
            with storage_errors(self.url(name)):
                raise

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of that name."""
        with storage_errors(self.url(name)):
            return bool(self.fs.exists(self.path(name)))

    def is_file(self, name: str = "") -> bool:
        """Whether it is a file."""
        with storage_errors(self.url(name)):
            return bool(self.fs.isfile(self.path(name)))

    def entry(self, name: str = "") -> FileEntry:
        """The listing's line for one file."""
        with storage_errors(self.url(name)):
            if not self.remote:
                status = os.stat(self.path(name))
                return FileEntry(name, status.st_size, str(status.st_mtime_ns))
            info = self.fs.info(self.path(name))
        return FileEntry(name, int(info["size"]), _version(info))

    def list(self, folder: str = "", recursive: bool = False) -> Sequence[FileEntry]:
        """The files below ``folder``, sorted by name; none if there is no such folder."""
        with storage_errors(self.url(folder)):
            entries = self._list_remote(folder, recursive) if self.remote else self._list_disk(folder, recursive)
        return sorted(entries, key=lambda entry: entry.name)

    def _list_remote(self, folder: str, recursive: bool) -> Sequence[FileEntry]:
        path = self.path(folder)
        try:
            # Not find(maxdepth=1): that one takes a refused listing for an empty folder.
            found = self.fs.find(path, detail=True).values() if recursive else self.fs.ls(path, detail=True)
        except FileNotFoundError as error:
            if _is_bucket_missing(error):
                raise
            return []
        prefix = len(self.root) + 1
        files = (info for info in found if info["type"] == "file" and len(info["name"]) >= prefix)
        return [FileEntry(info["name"][prefix:], int(info["size"] or 0), _version(info)) for info in files]

    def _list_disk(self, folder: str, recursive: bool) -> Sequence[FileEntry]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        entries = []
        for parent, folders, names in os.walk(self.path(folder), onerror=refuse, followlinks=True):
            if not recursive:
                folders.clear()
            for name in names:
                path = os.path.join(parent, name)
                with contextlib.suppress(FileNotFoundError):  # a link to nowhere, or just deleted
                    info = os.stat(path)
                    entries.append(FileEntry(os.path.relpath(path, self.root), info.st_size, str(info.st_mtime_ns)))
        return entries

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_atomic(self, name: str, content: bytes | memoryview) -> None:
        """Puts ``content`` under ``name`` whole or not at all; an older file of that name is replaced."""
        with storage_errors(self.url(name)):
            if self.remote:
                self.fs.pipe_file(self.path(name), bytes(content))
                return
            with self._temporary(name, content) as tmp:
                os.replace(tmp, self.path(name))
            _sync_folder(os.path.dirname(self.path(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Writes ``content`` only if ``name`` does not exist yet: True if we were the one, False if it was there.

        On S3 by ``If-None-Match: *``, on disk by ``link(2)``, which fails where the name is taken.
        """
        with storage_errors(self.url(name)):
            if not self.remote:
                try:
                    with self._temporary(name, content) as tmp:
                        os.link(tmp, self.path(name))
                except FileExistsError:
                    return False
                return True
            try:
                self.fs.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # s3fs reports the refused condition as EINVAL; only a look tells it from another failure.
                if self.fs.exists(self.path(name)):
                    return False
                raise
            return True

    def delete(self, names: Sequence[str]) -> None:
        """Removes files; one that is already gone is no error."""
        for name in names:
            with storage_errors(self.url(name)), contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def _temporary(self, name: str, content: bytes | memoryview) -> Iterator[str]:
        folder = self.path(TMP_FOLDER)
        os.makedirs(folder, exist_ok=True)
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        unique = f"{socket.gethostname()}~{os.getpid()}~{time.monotonic_ns()}~{os.path.basename(name)}"
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
                gone = not _alive(int(pid)) if ours else time.time() - path.stat().st_mtime > STALE_TMP_SECONDS
                if gone:
                    path.unlink()
                    swept += 1
        return swept


def _version(info: dict[str, Any]) -> str:
    """What an object store's listing knows that changes with the content: the etag, else the time."""
    return str(info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or "").strip('"')


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
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
