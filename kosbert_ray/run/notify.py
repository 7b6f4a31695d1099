"""A word to the outside when a run has ended, well or not: a command is run, or an address called."""

from __future__ import annotations

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
SHOWN = 200  # characters of a command's last words


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: "done", "rejected" (done, but with more rejected rows than ``max_rejected`` allows), "failed" or
            "interrupted".
        output: the output directory.
        error: the error line, if it failed.
        totals: sums over all slices in the output, if it is done.
        new: sums over the slices that the run committed, if it is done.
        seconds: wall time.
    """

    status: str
    output: str
    error: str = ""
    totals: dict[str, Any] | None = None
    new: dict[str, Any] | None = None
    seconds: float = 0.0


def notify(where: str, ended: Ended) -> None:
    """Tells ``where``, as JSON; that it cannot be told is said, and changes nothing about the run.

    Args:
        where: an http(s) address, which is sent a POST; else a command for the shell, which finds it on standard input.
        ended: what to tell.
    """
    content = json.dumps(asdict(ended), ensure_ascii=False).encode()
    try:
        if where.startswith(("http://", "https://")):
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(where, content, headers), timeout=CALL_SECONDS).close()
            return
        done = subprocess.run(["/bin/sh", "-c", where], input=content, capture_output=True, timeout=COMMAND_SECONDS)
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][-SHOWN:]
            log.warning(f"on_finish: the command ended with exit code {done.returncode}{words and f' ({words})'}")
    except subprocess.TimeoutExpired:
        log.warning(f"on_finish: the command did not end within {COMMAND_SECONDS:.0f} s")
    except OSError as error:  # urllib's are such; what they say does not hold the address, which may be a secret
        log.warning(f"on_finish: could not be told ({first_line(error)})")
