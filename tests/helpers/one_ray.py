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


@contextlib.contextmanager
def shared_ray() -> Iterator[None]:
    """Within the block, commands in this process share one local Ray, which starts at its first use.

    It has the options that a command would choose, and a command uses it as if it had started it (``is_local`` holds). A
    command that names a cluster's address joins that cluster.
    """
    from kosbert_ray.config import RayOptions
    from kosbert_ray.run.executors.ray import session

    join = session.joined
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start() -> None:
            with warm_ray(stack):
                stack.enter_context(join(RayOptions()))

        @contextlib.contextmanager
        def joined(config: RayOptions) -> Iterator[None]:
            if config.address in (None, "local"):
                start()
                yield
                return
            shared = session.is_local()
            with (
                patch("ray.is_initialized", return_value=False),
                patch.object(session, "_local", shared),
                join(config),
            ):
                yield

        stack.enter_context(patch.object(session, "joined", joined))
        yield


@contextlib.contextmanager
def warm_ray(stack: contextlib.ExitStack) -> Iterator[None]:
    """A Ray that starts within the block takes its workers from a warm process, which lives as long as ``stack``."""
    if sys.platform != "linux":  # elsewhere a fork of a process that has loaded torch may crash
        yield
        return
    from ray._private.parameter import RayParams

    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
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
    assert server.stdin
    assert server.stdout
    stack.callback(server.wait, 30)
    stack.callback(server.stdin.close)
    assert server.stdout.readline() == b"ready\n", "the warm process did not start"
    start = functools.partialmethod(RayParams.__init__, setup_worker_path=warm_workers.__file__)
    with (
        patch.dict(os.environ, {warm_workers.SOCKET: path}),
        patch.object(RayParams, "__init__", start),
        contextlib.chdir(ROOT),
    ):
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restores what a command changes in its process: signal handlers and environment.

    Ctrl-C ends the tests, not only the command.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with patch.dict(os.environ), patch("kosbert_ray.cli.main._interrupt", signal.default_int_handler):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs ``kosbert-ray`` in this process, on the shared Ray; returns what a process would."""
    from kosbert_ray.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with undisturbed(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = end.code if isinstance(end.code, int) else 1
    if code == 130:
        raise KeyboardInterrupt
    text = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, *text)
