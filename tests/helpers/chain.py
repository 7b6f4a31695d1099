"""Runs kosbert-ray commands one after another in one process, which loads torch once and stays connected to one Ray.

``python chain.py`` reads a JSON object per line, ``{"argv": […], "cwd": …}``; the answer is ``{"code": …, "output": …}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Chain:
    """The other side of the pipe: starts the process and hands it commands.

    Args:
        env: its environment; ``RAY_ADDRESS`` names the cluster that it joins.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(env)
        )

    def run(self, argv: Sequence[str], cwd: Path) -> tuple[int, str]:
        """Runs ``kosbert-ray`` with these arguments; returns the exit code and all output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"argv": [*argv], "cwd": str(cwd)}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return int(answer["code"]), str(answer["output"])

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def serve() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    import ray

    from kosbert_ray.cli.main import main

    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        os.chdir(request["cwd"])
        with tempfile.TemporaryFile() as output:
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            try:
                if not ray.is_initialized():
                    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
                code = main(request["argv"])
            except SystemExit as error:  # argparse
                code = error.code if isinstance(error.code, int) else 1
            sys.stdout.flush()
            sys.stderr.flush()
            output.seek(0)
            print(json.dumps({"code": code, "output": output.read().decode("utf-8", "replace")}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
