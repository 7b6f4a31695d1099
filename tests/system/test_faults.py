"""The fault matrix: the real thing is broken in every way we know, and each time ends in the undisturbed run's bytes.

Slow: ``make test-faults``. The table it ends with says for each fault how often it was tried and what it cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FAULTS, ROOT, S3, TINY, alive, command, everyday, free_port, leftovers, shards, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

ROWS = 24_000
SENTENCES = everyday()
SETTINGS = ["--model", TINY, "--keep", "id", "--set", "slice.max_rows=300"]
SETTINGS += ["--set", "slice.max_bytes=200KiB", "--set", "encoder.precision=fp32"]
RAY = ["--set", "executor=ray"]
ENCODER = "EncodeSlices"
MITMDUMP = shutil.which("mitmdump") or str(ROOT / ".venv-mitmproxy" / "bin" / "mitmdump")


@dataclass
class Fault:
    """A line of the matrix."""

    name: str
    tries: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    seconds: list[float] = field(default_factory=list)

    def line(self) -> str:
        spread = f"{min(self.seconds):.0f}-{max(self.seconds):.0f}" if self.seconds else "-"
        return f"{self.name:44} {self.tries:5} {self.lost:5} {self.duplicated:6} {self.differing:9} {spread:>9}"


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    fault = Fault(request.node.name.removeprefix("test_"))
    FAULTS.append(fault)
    return fault


@pytest.fixture(params=["ray", "local"])
def executor(request: pytest.FixtureRequest) -> list[str]:
    """The option that chooses an executor; a test runs on each."""
    return ["--set", f"executor={request.param}"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each way of cutting; each row has its number."""
    folder = tmp_path_factory.mktemp("faults")
    texts = [f"{SENTENCES[number % 520]} 그리고 {number}번째 이야기입니다." for number in range(ROWS)]
    pq.write_table(pa.table({"id": range(8000), "text": texts[:8000]}), folder / "a.parquet", row_group_size=3000)
    lines = [json.dumps({"id": number, "text": texts[number]}) for number in range(8000, ROWS)]
    (folder / "b.jsonl").write_text("\n".join(lines[:8000]), "utf-8")
    with pa.CompressedOutputStream(str(folder / "c.jsonl.gz"), "gzip") as out:
        out.write("\n".join(lines[8000:]).encode())
    return folder


@pytest.fixture(scope="module")
def undisturbed(cli, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The shards of a run that nothing happens to, and its seconds."""
    target = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.monotonic()
    cli("embed", corpus, target, *SETTINGS)
    return shards(target), time.monotonic() - started


class Running:
    """The command, under way in a session of its own, as in a terminal."""

    def __init__(self, *arguments: object, env: dict[str, str] | None = None, log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command(*arguments), stderr=file, stdout=file, env={**os.environ, **(env or {})}, start_new_session=True
            )

    def wait(self, seconds: float = 280) -> int:
        return self.process.wait(seconds)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8")

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def workers(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()) and process.cmdline()[0].startswith("ray::"):
                    found.append(process)
        return found


@contextlib.contextmanager
def running(*arguments: object, env: dict[str, str] | None = None, log: Path) -> Iterator[Running]:
    """The command; whatever it left is ended with the block."""
    run = Running(*arguments, env=env, log=log)
    family: list[psutil.Process] = []
    try:
        yield run
    finally:
        family = run.family()
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        for process in alive(family):
            with contextlib.suppress(psutil.Error):
                process.kill()


def kill_all(processes: list[psutil.Process]) -> None:
    for process in alive(processes):
        with contextlib.suppress(psutil.Error):
            process.kill()


def check(fault: Fault, target: Path, undisturbed: dict[str, bytes], rows: range = range(ROWS)) -> None:
    """Counts what is lost, there twice, or other than undisturbed; nothing of it may be."""
    found = shards(target)
    ids = Counter(number for name in found for number in pq.read_table(target / name)["id"].to_pylist())
    fault.tries += 1
    fault.lost += sum(number not in ids for number in rows)
    fault.duplicated += sum(count - 1 for count in ids.values())
    fault.differing += sum(found.get(name) != content for name, content in undisturbed.items()) + len(
        found.keys() - undisturbed.keys()
    )
    assert (fault.lost, fault.duplicated, fault.differing) == (0, 0, 0)
    assert leftovers(target) == []
    assert list((target / "_kosbert" / "leases").glob("*")) == []
    assert (target / "_SUCCESS").exists()


def committed(target: Path) -> int:
    return len(list(target.glob("*.parquet")))


def test_driver_killed_at_random_points(
    cli, corpus, undisturbed, tmp_path: Path, fault: Fault, executor: list[str]
) -> None:
    expected, seconds = undisturbed
    slowest = 0.0
    for number in range(20 if executor == RAY else 10):
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        target = tmp_path / f"out-{number}"
        with running("embed", corpus, target, *SETTINGS, *executor, log=tmp_path / f"{number}.log") as run:
            time.sleep(random.uniform(0.5, seconds))
            family = run.family()
            if sent == signal.SIGINT:
                os.killpg(run.process.pid, sent)  # Ctrl-C reaches the whole group
            else:
                run.process.send_signal(sent)
            at = time.monotonic()
            code = run.wait(60)
            if sent != signal.SIGKILL and code != 0:
                slowest = max(slowest, time.monotonic() - at)
                assert code in (130, -sent), run.said
                if code == 130:
                    assert "run the same command again to resume" in run.said.splitlines()[-1]
            kill_all(family)
        assert "Traceback" not in run.said
        before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
        at = time.monotonic()
        assert "done: 24,000 rows" in cli("embed", corpus, target, *SETTINGS, *executor).stdout
        fault.seconds.append(time.monotonic() - at)
        assert {name: (target / name).stat().st_mtime_ns for name in before} == before, "a committed slice was redone"
        check(fault, target, expected)
        shutil.rmtree(target)
    print(f"slowest end after SIGTERM or Ctrl-C: {slowest:.1f} s")
    assert slowest < 30


def test_tokenizing_worker_killed(cli, corpus, tmp_path: Path, fault: Fault) -> None:
    source = corpus / "c.jsonl.gz"  # one read task, so that tokenizing is a task of its own
    cli("embed", source, tmp_path / "expected", *SETTINGS)
    target = tmp_path / "out"
    with running("embed", source, target, *SETTINGS, *RAY, log=tmp_path / "log") as run:
        wait_for(lambda: committed(target) >= 3, 120, "no shard was committed")
        wait_for(lambda: _kill_one(run.workers("tokenize")), 60, "no such worker")
        assert run.wait() == 0, run.said
    check(fault, target, shards(tmp_path / "expected"), range(16_000, ROWS))


@pytest.mark.parametrize("stage", [ENCODER, "Slices", "write"])
def test_worker_killed(corpus, undisturbed, tmp_path: Path, fault: Fault, stage: str) -> None:
    expected, seconds = undisturbed
    for number in range(3 if stage == ENCODER else 1):
        target = tmp_path / f"out-{number}"
        at = time.monotonic()
        with running("embed", corpus, target, *SETTINGS, *RAY, log=tmp_path / "log") as run:
            wait_for(lambda: committed(target) >= 5 + 15 * number, 120, "no shard was committed")  # noqa: B023
            wait_for(lambda: _kill_one(run.workers(stage)), 60, "no such worker")
            assert run.wait() == 0, run.said
            assert "done: 24,000 rows" in run.said.splitlines()[-1]
        fault.seconds.append(time.monotonic() - at - seconds)
        check(fault, target, expected)


def _kill_one(processes: list[psutil.Process]) -> bool:
    """Whether one of them was there to be killed: workers of a task come and go."""
    random.shuffle(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            return True
    return False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A Ray cluster of two nodes on this machine, which asks for a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("change", ["node_removed", "node_added", "node_replaced"])
def test_cluster(cluster, corpus, undisturbed, tmp_path: Path, fault: Fault, change: str) -> None:
    expected, seconds = undisturbed
    target = tmp_path / "out"
    settings = [*SETTINGS, "--set", f"ray.address={cluster.address}", "--set", "encoder.actors=[1,4]"]
    at = time.monotonic()
    with running("embed", corpus, target, *settings, log=tmp_path / "log") as run:
        wait_for(lambda: committed(target) >= 8, 180, "no shard was committed")
        if change != "node_removed":
            cluster.add_node(num_cpus=2)
        if change != "node_added":
            victim = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
            cluster.remove_node(victim, allow_graceful=False)
        assert run.wait() == 0, run.said
        assert "done: 24,000 rows" in run.said.splitlines()[-1]
    fault.seconds.append(time.monotonic() - at - seconds)
    check(fault, target, expected)


# -- the object store ----------------------------------------------------------------------------------------------


class Proxy:
    """mitmproxy between the job and the store; does what it is ordered to."""

    def __init__(self, server: S3, folder: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.orders = folder / "fault.json"
        self.process = subprocess.Popen(
            [
                *(MITMDUMP, "--quiet", "--mode", f"reverse:{server.endpoint}", "--listen-host", "127.0.0.1"),
                *("--listen-port", str(self.port), "--set", "keep_host_header=true", "--set", "connection_strategy=lazy"),
                *("--set", f"confdir={folder}", "-s", str(ROOT / "tests" / "helpers" / "fault_proxy.py")),
            ],
            env={**os.environ, "FAULT_FILE": str(self.orders)},
            stdout=(folder / "mitm.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        wait_for(lambda: _listens(self.port), 60, "mitmdump does not listen")

    def order(self, **fault: object) -> None:
        partial = self.orders.with_suffix(".tmp")
        partial.write_text(json.dumps(fault) if fault else "")
        partial.rename(self.orders)

    @property
    def hits(self) -> int:
        count = Path(f"{self.orders}.count")
        return int(count.read_text() or 0) if count.exists() else 0


def _listens(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3]:
    """A server of the test's own, which may be stopped and started."""
    folder = tmp_path / "weed"
    folder.mkdir()
    server = S3(folder)
    yield server
    server.stop()


@pytest.fixture
def proxy(store: S3, tmp_path: Path) -> Iterator[Proxy]:
    if not Path(MITMDUMP).exists():
        pytest.skip("no mitmdump (make test-faults installs it)")
    proxy = Proxy(store, tmp_path)
    yield proxy
    proxy.process.kill()
    proxy.process.wait()


def upload(store: S3, corpus: Path) -> None:
    files = store.filesystem()
    files.mkdir("bucket")
    files.put(str(corpus), "bucket/in", recursive=True)


def download(store: S3, target: Path) -> Path:
    files = store.filesystem()
    for path in files.find("bucket/out"):
        there = target / path.removeprefix("bucket/out/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(files.cat_file(path))
    return target


def s3_undisturbed(store: S3, cli, folder: Path, env: dict[str, str]) -> dict[str, bytes]:
    """Etags are the versions in S3, so its shards have names of their own; the run is the same."""
    cli("embed", "s3://bucket/in", "s3://bucket/out", *SETTINGS, env=env)
    found = shards(download(store, folder))
    store.filesystem().rm("bucket/out", recursive=True)
    return found


OBJECT_STORE_SETTINGS = [*SETTINGS, "--set", "storage.timeout=4", "--set", "storage.retries=3"]


def count_outputs(store: S3) -> int:
    try:
        return sum(path.endswith(".parquet") for path in store.filesystem().ls("bucket/out"))
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kind", ["500", "503", "SlowDown", "reset", "truncate", "stall"])
def test_store(
    cli, store: S3, proxy: Proxy, corpus: Path, tmp_path: Path, fault: Fault, executor: list[str], kind: str
) -> None:
    upload(store, corpus)
    expected = s3_undisturbed(store, cli, tmp_path / "undisturbed", store.env)
    env = {**store.env, "AWS_ENDPOINT_URL": proxy.endpoint}
    at = time.monotonic()
    settings = ["s3://bucket/in", "s3://bucket/out", *OBJECT_STORE_SETTINGS, *executor]
    with running("embed", *settings, env=env, log=tmp_path / "log") as run:
        wait_for(lambda: "slices are committed already" in run.said, 120, "no start")
        proxy.order(kind=kind)
        assert run.wait(900) == 0, run.said
        assert "done: 24,000 rows" in run.said
        assert "Traceback" not in run.said
    fault.seconds.append(time.monotonic() - at)
    assert proxy.hits >= 3, f"the proxy did harm {proxy.hits} times only"
    fault.name += f" ({proxy.hits} requests hit)"
    check(fault, download(store, tmp_path / "out"), expected)


def test_store_restarted(cli, store: S3, corpus: Path, tmp_path: Path, fault: Fault, executor: list[str]) -> None:
    upload(store, corpus)
    expected = s3_undisturbed(store, cli, tmp_path / "undisturbed", store.env)
    settings = ["s3://bucket/in", "s3://bucket/out", *OBJECT_STORE_SETTINGS, *executor]
    with running("embed", *settings, env=store.env, log=tmp_path / "log") as run:
        wait_for(lambda: count_outputs(store) >= 5, 120, "no shard was committed")
        at = time.monotonic()
        store.stop()
        time.sleep(20)
        store.start()
        assert run.wait(600) == 0, run.said
    fault.seconds.append(time.monotonic() - at)
    assert "done: 24,000 rows" in run.said
    check(fault, download(store, tmp_path / "out"), expected)


def test_expired_credential_renewed(
    cli, store: S3, proxy: Proxy, corpus: Path, tmp_path: Path, fault: Fault, executor: list[str]
) -> None:
    upload(store, corpus)
    expected = s3_undisturbed(store, cli, tmp_path / "undisturbed", store.env)
    credentials = tmp_path / "credentials"

    def write(key: str, secret: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    write("admin", "secret")
    env = {name: value for name, value in store.env.items() if "KEY" not in name}
    env |= {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    settings = ["s3://bucket/in", "s3://bucket/out", *OBJECT_STORE_SETTINGS, *executor]
    with running("embed", *settings, env=env, log=tmp_path / "log") as run:
        wait_for(lambda: count_outputs(store) >= 5, 120, "no shard was committed")
        proxy.order(kind="expired", key="admin")
        at = time.monotonic()
        time.sleep(10)
        stuck = count_outputs(store)
        time.sleep(5)
        assert count_outputs(store) == stuck, "something is written with expired credentials"
        write("renewed", "fresh")
        assert run.wait(300) == 0, run.said
    fault.seconds.append(time.monotonic() - at)
    assert proxy.hits > 3
    assert "done: 24,000 rows" in run.said
    check(fault, download(store, tmp_path / "out"), expected)


# -- more than one, and none ------------------------------------------------------------------------------------------


def test_two_jobs_on_one_output(cli, corpus, undisturbed, tmp_path: Path, fault: Fault, executor: list[str]) -> None:
    expected, seconds = undisturbed
    target = tmp_path / "out"
    at = time.monotonic()
    with running("embed", corpus, target, *SETTINGS, *executor, log=tmp_path / "first") as first:
        wait_for(lambda: list((target / "_kosbert" / "leases").glob("*.json")), 60, "no lease")
        with running("embed", corpus, target, *SETTINGS, *executor, log=tmp_path / "second") as second:
            assert first.wait() == 0, first.said
            assert second.wait() == 0, second.said
    fault.seconds.append(time.monotonic() - at - seconds)
    assert "another run (on " in second.said
    assert second.said.index("another run (on ") < second.said.index("are committed already"), "it says so at its start"
    assert "another run" not in first.said
    for run in (first, second):
        assert "done: 24,000 rows" in run.said.splitlines()[-1]
    check(fault, target, expected)
    assert "all 24,000 rows" in cli("verify", target, "--input", corpus).stdout


def test_gpu_that_is_never_free(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that another job holds: within 30 s the run says what it waits for, and Ctrl-C ends it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 1, "include_dashboard": False})
    hold = (
        "import ray, time; ray.init('{}', log_to_driver=False); a = ray.remote(num_gpus=1)(type('A', (), {{}})).remote(); "
    )
    hold += "ray.get(a.__ray_ready__.remote()); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold.format(cluster.address)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        settings = [*SETTINGS, "--set", f"ray.address={cluster.address}", "--set", "encoder.device=cuda"]
        settings += ["--set", "stall_timeout=25"]
        with running("embed", corpus, tmp_path / "out", *settings, log=tmp_path / "log") as run:
            wait_for(lambda: "slices are committed already" in run.said, 90, "no start")
            at = time.monotonic()
            wait_for(
                lambda: "no encoder has been placed in the cluster yet: 1 requested, each with 1 GPU" in run.said,
                90,
                run.said,
            )
            assert "0 of 1 GPUs are free" in run.said
            wait_for(lambda: "resources for the encoders were never granted" in run.said, 60, run.said)
            print(f"said after {time.monotonic() - at:.0f} s")
            run.process.send_signal(signal.SIGINT)
            assert run.wait(30) == 130
            assert "run the same command again to resume" in run.said.splitlines()[-1]
    finally:
        holder.kill()
        holder.wait()
        cluster.shutdown()


# -- the disk ------------------------------------------------------------------------------------------------------

FULL = """
mount -t tmpfs -o size={size} tmpfs {disk} || exit 99
{run} > {log}.1 2>&1; echo $? > {log}.code
ls {disk}/out/_kosbert/tmp > {log}.tmp
ls {disk}/out/*.parquet | wc -l > {log}.shards
ls {disk}/out/_SUCCESS 2> /dev/null | wc -l > {log}.success
mount -o remount,size=1g {disk}
{run} > {log}.2 2>&1 || exit 98
cp -r {disk}/out {copy}
"""


def test_disk_full(corpus, undisturbed, tmp_path: Path, fault: Fault, executor: list[str]) -> None:
    expected, _ = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, expected.values())) // 2
    run = subprocess.list2cmdline(command("embed", corpus, disk / "out", *SETTINGS, *executor))
    script = FULL.format(size=size, disk=disk, run=run, log=tmp_path / "log", copy=tmp_path / "copy")
    at = time.monotonic()
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=280)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip(f"no small disk can be made here ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    fault.seconds.append(time.monotonic() - at)
    said = (tmp_path / "log.1").read_text()
    assert (tmp_path / "log.code").read_text().strip() == "1"
    assert "No space left on device; free some space and run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert (tmp_path / "log.tmp").read_text() == ""
    assert 0 < int((tmp_path / "log.shards").read_text()) < len(expected)
    assert (tmp_path / "log.success").read_text().strip() == "0"
    check(fault, tmp_path / "copy", expected)
