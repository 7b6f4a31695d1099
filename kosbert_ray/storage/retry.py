"""Retries operations on a remote store while it is down, busy, or refuses expired credentials."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from kosbert_ray.errors import StorageError
from kosbert_ray.storage.failures import is_expired, is_transient, storage_errors

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0

# A run shows these warnings as the reason why a worker is waiting.
log = logging.getLogger(__name__)

T = TypeVar("T")


def retry(operation: Callable[[], T], address: str, seconds: float, reconnect: Callable[[], None]) -> T:
    """Runs ``operation`` until it succeeds, fails for good, or the time is up.

    Args:
        operation: the operation; what it raises counts as a failure of ``address``.
        address: the file, for error messages.
        seconds: time after which no further attempt starts.
        reconnect: connects again with current credentials; called after credentials have expired.

    Raises:
        StorageError: the last failure; its ``__cause__`` is the store's own error.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            with storage_errors(address):
                return operation()
        except StorageError as error:
            cause = error.__cause__
            if cause is None or not is_transient(cause) or time.monotonic() + pause > deadline:
                raise
            log.warning("%s; retrying", error)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
            if is_expired(cause):
                reconnect()
