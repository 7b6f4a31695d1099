"""Starts Ray's workers as forks of one warm process that has already imported what they need: 0.1 s each instead of 6 s.

Ray starts a worker through two interpreters in a row, each of which imports Ray; an encoder then imports torch and
transformers. Every job starts new workers (its encoders, its board), so in a suite of small jobs these imports dominate.
Ray is given this file in place of its own ``setup_worker.py``; it asks the warm process for a fork and exits. A worker is
still a process of its own, with its own environment and log files. Only the imports are shared.

    python warm_workers.py serve SOCKET                    the warm process; exits when its standard input is closed
    python warm_workers.py default_worker.py OPTIONS...    what Ray runs for each worker
"""

import json
import os
import socket
import sys
from collections.abc import Sequence

SOCKET = "KOSBERT_WARM_WORKERS"  # the environment variable that holds the socket's path
CHUNK = 2**16
COVERAGE_SECONDS = 2.0
WITHOUT_RAY = ("pyarrow.parquet", "pyarrow.dataset", "transformers.models.bert.modeling_bert")
WITH_RAY = (
    "ray.data",
    "ray._private.workers.default_worker",
    "kosbert_ray.encoder.encoder",
    "kosbert_ray.encoder.engines.torch",
    "kosbert_ray.run.executors.ray.executor",
    "kosbert_ray.run.monitor.board",
)


def request_worker() -> None:
    """Asks the warm process for a worker with this process's arguments, environment and streams."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith(("--language", "--serialized-runtime"))]
    request = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        socket.send_fds(connection, [len(request).to_bytes(4)], [0, 1, 2])
        connection.sendall(request)
        connection.recv(1)  # returns when the worker is forked


def serve(path: str) -> None:
    """Forks a worker for each request, until this process's standard input is closed."""
    import selectors
    import signal

    preload(WITHOUT_RAY)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that workers leave no zombies
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as ready:
        server.bind(path)
        server.listen(64)
        ready.register(server, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is server for key, _ in ready.select()):
            connection, _ = server.accept()
            length, streams, _, _ = socket.recv_fds(connection, 4, 3)
            request = b""
            while len(request) < int.from_bytes(length):
                request += connection.recv(CHUNK)
            arguments, environment, folder = json.loads(request)
            if "ray" not in sys.modules:
                # Ray's core reads its settings, which include the raylet's process id, when it is imported.
                os.environ |= {name: value for name, value in environment.items() if name.startswith("RAY_")}
                preload(WITH_RAY)
            if not os.fork():
                for held in (ready, server, connection):
                    held.close()
                become_worker(arguments, environment, folder, streams)
            for stream in streams:
                os.close(stream)
            connection.close()


def preload(names: Sequence[str]) -> None:
    """Imports modules and keeps the garbage collector from touching (and so copying) their pages in each fork."""
    import gc
    import importlib

    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def become_worker(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Turns this fork into the worker that Ray asked for."""
    import runpy
    import signal
    import threading

    os.setpgid(0, 0)  # Ray kills the group of a worker that has ended
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    if "coverage" in sys.modules:
        threading.Thread(target=save_coverage, daemon=True).start()
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def save_coverage() -> None:
    """Saves what ``make coverage`` has measured every few seconds, since Ray ends a worker without warning."""
    import time

    import coverage

    while measured := coverage.Coverage.current():
        time.sleep(COVERAGE_SECONDS)
        measured.save()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        request_worker()
