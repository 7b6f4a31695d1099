"""Object stores through fsspec: connecting, listing and conditional writes.

Nothing here retries; :class:`kosbert_ray.storage.Storage` does. ``fs`` is always a file system of fsspec.
"""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.asyn import sync

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.storage.failures import is_bucket_missing, is_transient, is_unsupported
from kosbert_ray.storage.options import StorageOptions
from kosbert_ray.storage.walk import FileEntry

if TYPE_CHECKING:
    import pyarrow.fs

S3_SCHEMES = ("s3", "s3a")
EXTRAS = {"az": "az", "abfs": "az", "gs": "gs", "gcs": "gs"}  # scheme: extra of kosbert-ray that installs its client
VERSION_KEYS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "mtime")
TIME_KEYS = ("LastModified", "last_modified", "mtime")
PROBE_SECONDS = 3.0

log = logging.getLogger(__name__)


def connect(address: str, options: StorageOptions, **more: Any) -> Any:
    """Returns the file system for an address.

    Args:
        address: the address.
        options: options of an object store.
        more: further arguments of :func:`fsspec.filesystem`.

    Raises:
        StorageError: the scheme is unknown, its client is not installed, or the options are invalid.
    """
    scheme = address.partition("://")[0]
    kwargs = options.s3fs_kwargs() if scheme in S3_SCHEMES else {"use_listings_cache": False}
    try:
        return fsspec.filesystem(scheme, **kwargs, **more)
    except (ValueError, ImportError) as error:
        hint = f"; pip install 'kosbert-ray[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise StorageError(f"{address}: cannot open {scheme}:// addresses ({first_line(error)}){hint}") from error
    except Exception as error:  # botocore: the profile is not configured
        raise StorageError(f"{address}: {first_line(error)}") from error


def arrow_filesystem(fs: Any, address: str, options: StorageOptions) -> pyarrow.fs.FileSystem | None:
    """Returns Arrow's own client for a bucket of S3, which needs a fifth of the CPU time that s3fs takes for a request.

    It knows fewer settings than s3fs, so it is for what can be done again with s3fs.

    Args:
        fs: a file system of s3fs, connected, for its endpoint, region and credentials.
        address: an address in the bucket.
        options: options of the object store.

    Returns:
        The client; None if the store is another, the client cannot serve these settings, or the bucket cannot be reached
        with it.
    """
    scheme, _, path = address.partition("://")
    if scheme not in S3_SCHEMES or options.requester_pays or urllib.request.getproxies():
        return None
    try:
        from pyarrow.fs import FileType, S3FileSystem

        client = sync(fs.loop, fs.set_session)
        keys = None if options.anonymous else sync(fs.loop, client._request_signer._credentials.get_frozen_credentials)
        found = S3FileSystem(
            anonymous=options.anonymous,
            access_key=keys and keys.access_key,
            secret_key=keys and keys.secret_key,
            session_token=keys and keys.token,
            region=client.meta.region_name,
            endpoint_override=client.meta.endpoint_url,
            connect_timeout=PROBE_SECONDS,
            request_timeout=options.timeout,
        )
        usable = found.get_file_info(path.partition("/")[0]).type is FileType.Directory
    except Exception as error:  # whatever is missing or refused, s3fs serves it
        log.debug("%s: not read by Arrow (%s)", address, first_line(error))
        return None
    return found if usable else None


def list_files(fs: Any, path: str, root: str, recursive: bool) -> list[FileEntry]:
    """Lists the files in ``path``, with names relative to ``root``; an empty list if there is no such folder."""
    try:
        # find(maxdepth=1) would take a refused listing for an empty folder.
        found = fs.find(path, detail=True).values() if recursive else fs.ls(path, detail=True)
    except FileNotFoundError as error:
        if is_bucket_missing(error):
            raise
        return []
    prefix = len(root) + 1
    # A key that ends with a slash marks a folder.
    files = (info for info in found if info["type"] == "file" and info["name"][prefix:].rpartition("/")[2])
    return [FileEntry(info["name"][prefix:], int(info["size"] or 0), version_of(info)) for info in files]


def version_of(info: Mapping[str, Any]) -> str:
    """Returns what changes with a file's content: its etag, or else its modification time."""
    return str(next((value for key in VERSION_KEYS if (value := info.get(key))), "")).strip('"')


def modified(info: Mapping[str, Any]) -> float | None:
    """Returns a file's modification time in Unix seconds; None if it is unknown."""
    when: Any = next((value for key in TIME_KEYS if (value := info.get(key))), None)
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, int | float) else None


def create(fs: Any, path: str, content: bytes, address: str) -> bool:
    """Creates a file with ``If-None-Match: *``; returns False if it exists.

    A store that rejects conditional writes is checked for the file and then written to unconditionally.
    """
    try:
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        # s3fs reports a failed condition as EINVAL, like other failures.
        if fs.exists(path):
            return False
        if isinstance(error, PermissionError | FileNotFoundError) or (is_transient(error) and not is_unsupported(error)):
            raise
        log.warning("%s: the store rejects conditional writes; two runs that start at once may both claim it", address)
        fs.pipe_file(path, content)
    return True


def replace(fs: Any, path: str, content: bytes, expected: bytes, if_match: bool) -> bool:
    """Replaces a file that holds ``expected``; returns False if it does not.

    Args:
        fs: the file system.
        path: the file.
        content: its new content.
        expected: its current content.
        if_match: send ``If-Match`` with the write. A store that rejects it is read once more and then written to.
    """
    try:
        etag = str(fs.info(path).get("ETag", ""))
        if bytes(fs.cat_file(path)) != expected:
            return False
    except FileNotFoundError:
        return False
    try:
        fs.pipe_file(path, content, **({"IfMatch": etag} if etag and if_match else {}))
    except OSError as error:
        if isinstance(error, PermissionError) or (is_transient(error) and not is_unsupported(error)):
            raise
        if bytes(fs.cat_file(path)) != expected:
            return False
        fs.pipe_file(path, content)
    return True
