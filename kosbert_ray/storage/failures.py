"""Classifies failures of disks and object stores: a one-line message for the user, and whether a retry may help.

s3fs and fsspec raise ``OSError`` and its subclasses, with the store's response attached. For broken connections they pass
on the errors of aiohttp and botocore.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.storage.options import is_url

# Packages whose errors may surface: s3fs uses aiohttp and botocore, adlfs azure, and huggingface_hub httpx.
CLIENT_MODULES = ("botocore", "aiobotocore", "aiohttp", "azure", "gcsfs", "huggingface_hub", "httpx", "httpx2")
# Credentials that expired and may be renewed; a wrong secret fails at once. "400" is an expired token in the response to a
# HEAD request, which has no body.
EXPIRED = ("400", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidAccessKeyId")
BUSY = ("SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "RequestLimitExceeded")

HINT_REMOTE = (
    "check the credentials, and storage.requester_pays or storage.server_side_encryption if the bucket requires them"
)
UNSUPPORTED_STATUS = (405, 412, 501)  # the request is not supported, or its condition does not hold
UNSUPPORTED_CODES = ("NotImplemented", "MissingContentMD5", "PreconditionFailed")


class ShortRead(OSError):
    """The store sent fewer bytes than requested."""


@contextlib.contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turns errors of fsspec, s3fs and the operating system into a :class:`StorageError` that names ``address``."""
    try:
        yield
    except FileNotFoundError as error:
        what = "bucket" if is_bucket_missing(error) else "file or folder"
        raise StorageError(f"{address}: no such {what}") from error
    except PermissionError as error:
        hint = HINT_REMOTE if is_url(address) else "check the permissions of the file and its parent folders"
        reason = first_line(error) if is_url(address) else error.strerror or first_line(error)
        raise StorageError(f"{address}: permission denied ({reason}); {hint}") from error
    except OSError as error:
        hint = "; free some space and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"{address}: {error.strerror or first_line(error)}{hint}") from error
    except ValueError as error:
        raise StorageError(f"{address}: {first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in CLIENT_MODULES:
            raise StorageError(f"{address}: {first_line(error)}") from error
        raise


def is_bucket_missing(error: FileNotFoundError) -> bool:
    """True if the bucket does not exist, rather than the file."""
    return _code(error) == "NoSuchBucket"


def is_expired(error: BaseException) -> bool:
    """True if the store refused expired credentials."""
    return _code(error) in EXPIRED


def is_transient(error: BaseException) -> bool:
    """True if a retry may succeed: the store is down, busy or unreachable, or credentials have expired.

    The status of the store's response decides. Without a response the connection broke, which is always transient.
    """
    if is_expired(error) or isinstance(error, ShortRead | TimeoutError | ConnectionError):
        return True
    if is_unsupported(error):
        return False
    response = _response(error)
    if response:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500 or status == 429 or _code(error) in BUSY)
    return type(error).__module__.partition(".")[0] in CLIENT_MODULES


def is_unsupported(error: BaseException) -> bool:
    """True if the store does not support the request or its condition does not hold, so that retries never help."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in UNSUPPORTED_STATUS or _code(error) in UNSUPPORTED_CODES


def _response(error: BaseException) -> dict[str, dict[str, int]]:
    """Returns the store's response to the failed request, as parsed by botocore; empty if there was none."""
    for link in (error, error.__cause__):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))
