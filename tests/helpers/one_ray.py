"""The local Ray that all tests of a session share, and the ``kosbert-ray`` command run in this process on it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import warm_workers

# Ray reads this when it is imported, so this module imports it only in functions. The clusters of some tests require a
# token, and a process decides once whether it sends one.
os.environ["RAY_AUTH_MODE"] = "token"
ROOT = Path(__file__).parents[2]


class SharedRay:
    """A local Ray that starts at its first use, with the options that the command itself would choose.

    Whoever joins it is in the same position as a command that started its own: ``is_local`` holds.
    """

    def __init__(self) -> None:
        from kosbert_ray.run.ray_session import joined

        self._join = joined
        self._stack = contextlib.ExitStack()
        self._started = False

    @contextlib.contextmanager
    def joined(self, *_: object) -> Iterator[None]:
        """Takes the place of ``ray_session.joined``: starts Ray where necessary and leaves it running."""
        if not self._started:
            self._start()
        yield

    def _start(self) -> None:
        from ray._private.parameter import RayParams

        from kosbert_ray.config import RayConfig

        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._started = True
        path = str(folder / "socket")
        # Torch takes its number of threads from this variable when it is imported; Ray sets it to 1 for such workers.
        environment = {**os.environ, warm_workers.SOCKET: path, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        server = subprocess.Popen(
            [sys.executable, warm_workers.__file__, "serve", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the tests, which then close it
        )
        self._stack.callback(server.wait, 30)
        assert server.stdin
        assert server.stdout
        self._stack.callback(server.stdin.close)
        assert server.stdout.readline() == b"ready\n", "the warm process did not start"
        start = functools.partialmethod(RayParams.__init__, setup_worker_path=warm_workers.__file__)
        with (
            patch.dict(os.environ, {warm_workers.SOCKET: path}),
            contextlib.chdir(ROOT),
            patch.object(RayParams, "__init__", start),
        ):
            self._stack.enter_context(self._join(RayConfig()))

    def stop(self) -> None:
        """Stops Ray and the warm process, if they were started."""
        self._stack.close()
        self._started = False


@functools.cache
def shared_ray() -> SharedRay:
    """The one of this session."""
    return SharedRay()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restores what a command changes in its process: signal handlers, environment and working folder.

    Ctrl-C ends the tests, not only the command.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            patch.dict(os.environ),
            contextlib.chdir(ROOT),
            patch("kosbert_ray.cli.main._interrupt", signal.default_int_handler),
        ):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs ``kosbert-ray`` in this process, on the shared Ray; returns what a process would."""
    from kosbert_ray.cli import main
    from kosbert_ray.run import ray_session

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        undisturbed(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(ray_session, "joined", shared_ray().joined),
    ):
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = end.code if isinstance(end.code, int) else 1
    if code == 130:
        raise KeyboardInterrupt
    text = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, *text)
