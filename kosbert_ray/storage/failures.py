"""What a store's failure means: one line for the user, and whether it is worth another try.

s3fs and fsspec raise what operating systems raise (``OSError`` and its kin) with the store's own answer behind it; for
broken connections they let aiohttp's and botocore's errors through.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.storage.options import is_url

# aiohttp and botocore below s3fs, azure below adlfs, gcsfs itself, httpx below the client of the Hugging Face hub.
CLIENT_MODULES = ("botocore", "aiobotocore", "aiohttp", "azure", "gcsfs", "huggingface_hub", "httpx", "httpx2")
# Credentials that were good and may be good again once they are renewed; a wrong secret is told at once. "400" is all that
# the answer to a HEAD request says of an expired token: it has no body.
EXPIRED = ("400", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidAccessKeyId")
BUSY = ("SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "RequestLimitExceeded")

HINT_REMOTE = (
    "check the credentials, and storage.requester_pays or storage.server_side_encryption if the bucket asks for them"
)
NOT_DONE = (405, 412, 501)  # what the store does not support, or a condition that does not hold


class CutShort(OSError):
    """The store sent fewer bytes than it was asked for."""


@contextlib.contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turns what fsspec, s3fs and the operating system raise into a :class:`StorageError` that names ``address``."""
    try:
        yield
    except FileNotFoundError as error:
        what = "bucket" if is_bucket_missing(error) else "file or folder"
        raise StorageError(f"{address}: no such {what}") from error
    except PermissionError as error:
        hint = HINT_REMOTE if is_url(address) else "check the rights of the file and of the folders above it"
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
    """Whether s3fs means the bucket, by the code of the store's answer behind its error."""
    return _code(error) == "NoSuchBucket"


def is_expired(error: BaseException) -> bool:
    """Whether the store refused credentials that have run out."""
    return _code(error) in EXPIRED


def is_passing(error: BaseException) -> bool:
    """Whether a remote store may well answer otherwise a little later: it is down, busy or cut off.

    By the status of its answer where there is one; without an answer the connection broke, which always is.
    """
    if is_expired(error) or isinstance(error, CutShort | TimeoutError | ConnectionError):
        return True
    if is_refused(error):
        return False
    answer = _answer(error)
    if answer:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500 or status == 429 or _code(error) in BUSY)
    return type(error).__module__.partition(".")[0] in CLIENT_MODULES


def is_refused(error: BaseException) -> bool:
    """Whether the store cannot do what was asked, and never will: no answer of a later try is another."""
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in NOT_DONE or _code(error) in ("NotImplemented", "MissingContentMD5", "PreconditionFailed")


def _answer(error: BaseException) -> dict[str, dict[str, int]]:
    """The store's answer behind an error, as botocore parsed it; empty if there was none."""
    for link in (error, error.__cause__):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))
