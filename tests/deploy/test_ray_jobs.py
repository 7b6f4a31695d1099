"""Jobs on a real cluster with token authentication: submit, follow, reattach, stop, resume, and refusals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from cluster import Cluster
from conftest import TINY, command, everyday, wait_for

from kosbert_ray.config import load_config
from kosbert_ray.deploy.ray_jobs import ClusterJob
from kosbert_ray.errors import UsageError

SENTENCES = everyday()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"), {})
    yield found
    found.end()


def put(folder: Path, files: int, rows: int) -> None:
    folder.mkdir()
    for number in range(files):
        texts = [f"{SENTENCES[row % 520]} {number} {row}" for row in range(rows)]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_survives_its_submitter_and_can_be_reattached_stopped_and_resumed(
    cli, cluster: Cluster, tmp_path: Path
) -> None:
    put(tmp_path / "in", 4, 3000)
    out = tmp_path / "out"
    settings = ["--model", TINY, "--set", "slice.max_rows=50"]
    arguments = ["submit", tmp_path / "in", out, *settings, "--address", cluster.address]
    submitter = subprocess.Popen(command(*arguments), env=cluster.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(out.glob("*.parquet")), 120, "no shard was committed")
    finally:
        submitter.kill()
        submitter.wait()
    seen = len(list(out.glob("*.parquet")))
    wait_for(lambda: len(list(out.glob("*.parquet"))) > seen, 60, "the job ended with its submitter")

    done = cli(*arguments, "--no-wait", env=cluster.env)
    assert "-1: already running, reattached" in done.stderr
    assert "-1: running" in cli(*arguments, "--status", env=cluster.env).stdout
    assert cli(*arguments, "--stop", env=cluster.env).stdout.startswith("stopped: kosbert-ray-")
    assert not (out / "_SUCCESS").exists()
    committed = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert committed

    done = cli(*arguments, env=cluster.env)
    assert "-2: submitted" in done.stderr
    assert "slices are committed already" in done.stdout
    assert "done: 12,000 rows in 240 shards" in done.stdout
    assert all(path.stat().st_mtime_ns == changed for path, changed in committed.items())
    assert ds.dataset(out, format="parquet").count_rows() == 12_000
    status = cli(*arguments, "--status", env=cluster.env).stdout.splitlines()
    assert [line.split(": ")[1].partition(" (")[0] for line in status] == ["stopped", "succeeded"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_leaves_the_job_running_and_a_failed_job_sets_the_exit_code(cli, cluster: Cluster, tmp_path: Path) -> None:
    put(tmp_path / "in", 2, 2000)
    arguments = ["submit", tmp_path / "in", tmp_path / "out", "--model", TINY, "--address", cluster.address]
    arguments += ["--set", "slice.max_rows=50"]
    with (tmp_path / "log").open("w") as log:
        submitter = subprocess.Popen(command(*arguments), env=cluster.env, stdout=subprocess.DEVNULL, stderr=log)
    wait_for(lambda: list((tmp_path / "out").glob("*.parquet")), 120, "no shard was committed")
    submitter.send_signal(signal.SIGINT)
    assert submitter.wait(60) == 130
    assert "is still running. Run the same command to reattach" in (tmp_path / "log").read_text()
    done = cli(*arguments, env=cluster.env)
    assert "already running, reattached" in done.stderr
    assert "done: 4,000 rows" in done.stdout

    done = cli(*arguments, "--set", "input.text=nothing", code=1, env=cluster.env)
    assert "no column 'nothing'" in done.stdout
    assert "failed" in done.stderr.splitlines()[-1]


def test_an_unreachable_cluster_is_one_line(told) -> None:
    at = ("--address", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9: cannot use the cluster's job API" in told("submit", "a", "b", *at, code=1)


def test_a_job_with_a_secret_or_without_an_output_is_refused() -> None:
    with pytest.raises(UsageError, match=r"storage\.session_token: secrets are not sent to a cluster"):
        ClusterJob.of(load_config(None, ["input.path=/a", "output.path=/b", "storage.session_token=x"]))
    with pytest.raises(UsageError, match=r"output\.path: missing; run kosbert-ray submit INPUT OUTPUT"):
        ClusterJob.of(load_config(None, ["input.path=/a"]))


def test_a_submission_id_depends_on_the_result_only() -> None:
    def name(*settings: str) -> str:
        return ClusterJob.of(load_config(None, ["input.path=/a", "output.path=/b", *settings])).name

    assert name() == name("encoder.actors=4", "storage.retries=3", "ray.address=auto", "stall_timeout=9")
    assert (
        len({name(), name("output.path=/c"), name("model.name=x/y"), name("slice.max_rows=9"), name("input.keep=[a]")}) == 5
    )


class Wire:
    """A TCP port that forwards to another and can be cut off."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self.is_cut = threading.Event()
        self.refused = 0
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut.set()
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self.is_cut.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self.socket.accept()
            if self.is_cut.is_set():
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_log_continues_after_a_lost_connection(cluster: Cluster, tmp_path: Path) -> None:
    put(tmp_path / "in", 4, 3000)
    wire = Wire(int(cluster.address.rpartition(":")[2]))
    arguments = ["submit", tmp_path / "in", tmp_path / "out", "--model", TINY, "--set", "slice.max_rows=50"]
    arguments += ["--set", "log_format=json", "--address", f"http://127.0.0.1:{wire.port}"]
    with (tmp_path / "stdout").open("w") as out, (tmp_path / "stderr").open("w") as err:
        submitter = subprocess.Popen(command(*arguments), env=cluster.env, stdout=out, stderr=err)
    wait_for(lambda: list((tmp_path / "out").glob("*.parquet")), 120, "no shard was committed")
    wire.cut()
    wait_for(lambda: wire.refused > 1, 60, "it did not reconnect")
    wire.restore()
    assert submitter.wait(200) == 0
    assert (tmp_path / "stderr").read_text().count("does not answer") == 1
    lines = [line for line in (tmp_path / "stdout").read_text().splitlines() if '"event": "slice"' in line]
    shards = [json.loads(line)["shard"] for line in lines]
    assert len(shards) == len({*shards}) == 240
