"""Keeps what FAISS prints away from standard output, which is for results."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Discards what is printed to standard output until the block ends, by other threads, too: for short blocks."""
    with _lock:
        if sys.stdout:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
        try:
            original = os.dup(1)
        except OSError:  # there is no standard output
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        flush = ctypes.CDLL(None).fflush
        flush(None)
        os.dup2(nowhere, 1)
        try:
            yield
        finally:
            flush(None)  # of a pipe, C would print it when the process ends
            os.dup2(original, 1)
            os.close(original)
            os.close(nowhere)
