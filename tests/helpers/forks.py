"""Runs code in forks of one process, for tests of what a process reads only once, such as huggingface_hub its environment.

Importing torch and transformers takes seconds; each fork starts with them, and has read nothing of an earlier one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SERVE = """
import json, os, sys, traceback

exec(sys.argv[1])
for line in sys.stdin:
    code, values, environment = json.loads(line)
    reading, writing = os.pipe()
    if not os.fork():
        os.environ.update(environment)
        names = {"values": values}
        try:
            exec(code, names)
            answer = {"result": names["result"]}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(pipe.read(), flush=True)
    os.wait()
"""


class Forks:
    """The process that forks.

    Args:
        imports: code that each fork starts with.
        env: the environment of that code.
    """

    def __init__(self, imports: str, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, imports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(env)
        )

    def run(self, code: str, *values: Any, **environment: str) -> Any:
        """Runs code that takes ``values`` and assigns ``result``, both of JSON; fails with the traceback of an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([code, values, environment]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "result" in answer, answer["error"]
        return answer["result"]

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait(60)
