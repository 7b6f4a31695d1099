"""Notifies a webhook or runs a command when a run ends."""

from __future__ import annotations

import http.client
import json
import logging
import subprocess
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any

from kosbert_ray.errors import first_line

log = logging.getLogger(__name__)

COMMAND_SECONDS = 600.0
CALL_SECONDS = 30.0
SHOWN_CHARS = 200  # of a command's last line


@dataclass(frozen=True)
class Ended:
    """The end of a run.

    Attributes:
        status: "done", "rejected" (done, but with more rejected rows than ``max_rejected`` allows), "failed" or
            "interrupted"; "limit" or "max_minutes" if that option ended it with slices left to do.
        output: the output directory.
        error: the error line, if it failed.
        totals: sums over all slices in the output, if the run finished.
        new: sums over the slices that this run committed, if it finished.
        seconds: wall time.
        unpublished: the errors of tables as which the output could not be published.
    """

    status: str
    output: str
    error: str = ""
    totals: dict[str, Any] | None = None
    new: dict[str, Any] | None = None
    seconds: float = 0.0
    unpublished: tuple[str, ...] = ()


def notify(where: str, ended: Ended) -> None:
    """Sends the end of a run as JSON. A failure is logged and does not affect the run.

    Args:
        where: an http(s) URL, which receives a POST, or a shell command, which receives the JSON on standard input.
        ended: what to send.
    """
    content = json.dumps(asdict(ended)).encode()
    try:
        if where.startswith(("http://", "https://")):
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(where, content, headers), timeout=CALL_SECONDS).close()
            return
        done = subprocess.run(["/bin/sh", "-c", where], input=content, capture_output=True, timeout=COMMAND_SECONDS)
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][-SHOWN_CHARS:]
            log.warning(f"on_finish: the command ended with exit code {done.returncode}{words and f' ({words})'}")
    except subprocess.TimeoutExpired:
        log.warning(f"on_finish: the command did not end within {COMMAND_SECONDS:.0f} s")
    except (ValueError, http.client.HTTPException):  # their messages contain the URL, which may be a secret
        log.warning("on_finish: the notification failed (the URL or the server's answer is invalid)")
    except OSError as error:  # urllib's errors too; they do not contain the URL
        log.warning(f"on_finish: the notification failed ({first_line(error)})")
