"""The package's log on standard error: plain lines for people, JSON for machines.

Every module logs to ``logging.getLogger(__name__)``. A command, and :func:`kosbert_ray.embed`, show what is logged with
:func:`shown`; a program that uses the package as a library handles the ``kosbert_ray`` logger as it likes.

Fields in ``extra`` become part of a record's JSON line; ``extra={"label": "failed"}`` starts its text line with ``failed:``
instead of its level.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

LOGGER = "kosbert_ray"
LABELS = {logging.WARNING: "warning", logging.ERROR: "error"}
REPEAT_SECONDS = 60.0  # the same warning is shown once in this time
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "label"}

LogFormat = Literal["text", "json"]


class LineHandler(logging.Handler):
    """Writes each record to standard error as one line.

    Attributes:
        log_format: "text" or "json".
    """

    def __init__(self, log_format: LogFormat = "text") -> None:
        super().__init__(logging.INFO)
        self.log_format = log_format
        self._shown: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, unless it repeats a recent warning."""
        if record.levelno == logging.WARNING and self._is_repeated(record.getMessage()):
            return
        line = _json_line(record) if self.log_format == "json" else _text_line(record)
        # A closed pipe (`2>&1 | head -1`) must not stop a run.
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def _is_repeated(self, message: str) -> bool:
        now = time.monotonic()
        if now - self._shown.get(message, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return True
        self._shown[message] = now
        return False


def _text_line(record: logging.LogRecord) -> str:
    label = getattr(record, "label", LABELS.get(record.levelno, ""))
    message = record.getMessage().replace("\n", "\\n")  # a file name may contain a line break
    return f"kosbert-ray: {label}: {message}" if label else f"kosbert-ray: {message}"


def _json_line(record: logging.LogRecord) -> str:
    extra = vars(record).items()
    # Ray adds a private field to every record.
    fields: dict[str, Any] = {name: value for name, value in extra if name not in STANDARD and not name.startswith("_")}
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line = {"time": at, "level": record.levelname.lower(), "message": record.getMessage(), **fields}
    # Escapes of another encoding (backslashreplace) are not those of JSON.
    utf8 = (getattr(sys.stderr, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    return json.dumps(line, ensure_ascii=not utf8, default=str)


@contextlib.contextmanager
def shown(log_format: LogFormat = "text", level: int = logging.INFO) -> Iterator[None]:
    """Shows the package's log on standard error until the block ends, then restores the logger.

    Inside another ``shown`` block only the format changes. If the program has its own handlers on the ``kosbert_ray``
    logger, these receive the records instead.

    Args:
        log_format: "text", or "json" for one JSON object per line.
        level: of the records to show.
    """
    logger = logging.getLogger(LOGGER)
    outer = next((handler for handler in logger.handlers if isinstance(handler, LineHandler)), None)
    if outer:
        before, outer.log_format = outer.log_format, log_format
        try:
            yield
        finally:
            outer.log_format = before
        return
    if logger.handlers:
        yield
        return
    before_level, propagate = logger.level, logger.propagate
    handler = LineHandler(log_format)
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before_level)
        logger.propagate = propagate


def is_quiet() -> bool:
    """True if the enclosing :func:`shown` block shows no remarks, only warnings and errors."""
    handlers = logging.getLogger(LOGGER).handlers
    return any(isinstance(handler, LineHandler) and handler.level > logging.INFO for handler in handlers)


def set_format(log_format: LogFormat) -> None:
    """Changes the format of the enclosing :func:`shown` block."""
    for handler in logging.getLogger(LOGGER).handlers:
        if isinstance(handler, LineHandler):
            handler.log_format = log_format
