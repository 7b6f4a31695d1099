"""Secrets stay where they are, a model's files are data and not programs, and a cluster may ask for a token."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, SECRET, TINY, alive, everyday, free_port, wait_for

from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions

FP32 = EncoderOptions("fp32", "cpu")


@pytest.mark.slow
def test_a_secret_is_nowhere_to_be_found_afterwards(cli, s3, tmp_path: Path) -> None:
    """Not in what the job writes, not in what it says, not in Ray's logs; nor when something is wrong with it."""
    files = s3.filesystem()
    files.mkdir("secrets")
    files.pipe_file("secrets/in/a.jsonl", "\n".join(json.dumps({"text": text}) for text in everyday()).encode())
    storage = {"endpoint_url": s3.endpoint, "region": "us-east-1", "access_key_id": "keeper", "secret_access_key": SECRET}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"storage": storage, "model": {"name": TINY}}))
    ray_logs = Path(f"/tmp/kosbert-{os.getpid()}")  # Ray's sockets want a short path
    env = {"RAY_TMPDIR": str(ray_logs)}
    said = []
    try:
        arguments = ["embed", "s3://secrets/in", "s3://secrets/out", "--config", tmp_path / "job.yaml"]
        ray_logs.mkdir()
        for code, more in (
            (0, []),
            (1, ["--set", "slice.max_rows=9"]),
            (1, ["--set", "storage.region=nowhere", "--set", "input.text=nothing"]),
            (1, ["--set", "storage.access_key_id=nobody"]),
            (2, ["--set", f"storage.secret_acces_key={SECRET}"]),
            (2, ["--set", f"storage.secret_access_key=[{SECRET}"]),
            (2, ["--set", f"storage.secret_access_key=[{SECRET}]"]),
            (2, ["--set", f"storage.endpoint_url=http://me:{SECRET}@127.0.0.1"]),
        ):
            done = cli(*arguments, *more, code=code, env=env)
            said.append(done.stdout + done.stderr)
        done = cli("verify", "s3://secrets/out", "--config", tmp_path / "job.yaml", env=env)
        said.append(done.stdout + done.stderr)
        logs = [path for path in ray_logs.rglob("*") if path.is_file()]
        assert len(logs) > 10, "Ray has logged"
        assert not [path for path in logs if SECRET.encode() in path.read_bytes()]
    finally:
        shutil.rmtree(ray_logs, ignore_errors=True)
    assert not [text for text in said if SECRET in text]
    written = files.find("secrets/out")
    assert any(path.endswith("job.json") for path in written)
    assert not [path for path in written if SECRET.encode() in files.cat_file(path)]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_beside_the_weights_is_never_opened(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for name in ("pytorch_model.bin", "training_args.bin", "1_Pooling/pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "burst")))
    vectors = Encoder.load(str(folder), FP32).encode(["가", "나"])
    np.testing.assert_array_equal(vectors, Encoder.load(str(tiny_model), FP32).encode(["가", "나"]))
    assert not (tmp_path / "burst").exists()


def ray(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "ray"), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
    )


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_job_is_submitted_to_a_cluster_that_asks_for_a_token_and_refused_without_it(tmp_path: Path) -> None:
    """As README says: RAY_AUTH_MODE=token on both sides, and the cluster's token with the client."""
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    (tmp_path / "wrong").write_text("fedcba9876543210" * 4)
    dashboard, port = free_port(), free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    head = ["start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=3", "--block"]
    cluster = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), *head],
        env=env,
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "log").read_text(), 90, "no cluster")
        time.sleep(5)  # its dashboard answers a little later
        at = f"http://127.0.0.1:{dashboard}"
        program = f"{sys.executable} {ROOT}/jobs/embed.py --config {ROOT}/configs/quickstart.yaml"
        program += f" --set output.path={tmp_path}/out --set input.path={ROOT}/kosbert_ray/bundled/everyday"
        submit = ["job", "submit", "--address", at, "--", *program.split()]
        for denied in ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, {"RAY_AUTH_MODE": "disabled"}):
            done = ray(*submit, env=env | denied)
            assert done.returncode != 0, done.stdout
            assert re.search("401|403|[Uu]nauth|[Tt]oken", done.stdout + done.stderr)
        assert not (tmp_path / "out").exists()
        done = ray(*submit, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "done: 520 rows in 8 shards" in done.stdout
    finally:
        family = psutil.Process(cluster.pid).children(recursive=True)
        cluster.terminate()
        cluster.wait(60)
        for process in alive(family):
            process.kill()
