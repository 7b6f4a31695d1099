"""Remarks that a run logs once, however often it comes across them."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Notices:
    """Logs each line once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def info(self, *lines: str) -> None:
        """Logs remarks."""
        for line in self._new(lines):
            log.info(line)

    def warning(self, *lines: str) -> None:
        """Logs warnings."""
        for line in self._new(lines):
            log.warning(line)

    def failed(self, *lines: str) -> None:
        """Logs files that cannot be embedded."""
        for line in self._new(lines):
            log.error(line, extra={"label": "failed"})

    def _new(self, lines: tuple[str, ...]) -> list[str]:
        new = [line for line in dict.fromkeys(lines) if line not in self._logged]
        self._logged.update(new)
        return new
