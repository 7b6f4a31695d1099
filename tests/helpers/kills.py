"""Kills a command at random moments of its work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence

from conftest import command


def kill_at_random(arguments: Sequence[object], kills: int, seed: random.Random, last: float) -> None:
    """Starts a command ``kills`` times and kills each at a moment that its dry run tells.

    Args:
        arguments: of the command, which has ``--dry-run``.
        kills: how often.
        seed: gives the moments.
        last: the latest moment; 1 is the time of a dry run, and 0.6 of it the earliest.
    """
    started = time.monotonic()
    subprocess.run(command(*arguments, "--dry-run"), capture_output=True, check=True)
    start = time.monotonic() - started
    for _ in range(kills):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(start * seed.uniform(0.6, last))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
