"""The log on standard error: text for people, JSON for machines."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from kosbert_ray.logs import shown

log = logging.getLogger("kosbert_ray.some.module")


def test_lines_start_with_their_level_or_label(capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        log.info("read 3 files")
        log.warning("slow\nstore")
        log.error("broken")
        log.error("a.csv: broken", extra={"label": "failed"})
    log.info("not shown")
    assert capsys.readouterr().err.splitlines() == [
        "kosbert-ray: read 3 files",
        "kosbert-ray: warning: slow\\nstore",
        "kosbert-ray: error: broken",
        "kosbert-ray: failed: a.csv: broken",
    ]


def test_a_repeated_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        for _ in range(3):
            log.warning("the store is slow")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "euc-kr", "ascii"])
def test_json_lines_are_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", stream)
    with shown("json"):
        log.error("한글 é😀\udc80", extra={"event": "slice", "rows": 3, "_private": 1})
    stream.flush()
    line = json.loads(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    assert line.pop("time")
    assert line == {"level": "error", "message": "한글 é😀\udc80", "event": "slice", "rows": 3}


def test_the_logger_is_restored() -> None:
    logger = logging.getLogger("kosbert_ray")
    before = logger.level, logger.handlers[:], logger.propagate
    with shown(), shown("json"):
        assert len(logger.handlers) == 1
    assert (logger.level, logger.handlers[:], logger.propagate) == before


def test_a_programs_own_handler_receives_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("kosbert_ray")
    logger.addHandler(handler)
    try:
        with shown():
            log.warning("mine")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["mine"]
    assert not capsys.readouterr().err
