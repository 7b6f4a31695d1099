"""The RayJob's entry command and configuration on a cluster shaped as its pods are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from conftest import ROOT, S3, TINY, everyday

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def documents() -> dict[str, dict]:
    found = yaml.safe_load_all((ROOT / "configs" / "rayjob.yaml").read_text("utf-8"))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def pods(documents, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes started by the parameters of the RayJob's groups. No machine here has a GPU: that node only claims one."""
    spec = documents["RayJob"]["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["rayStartParams"] for group in spec["workerGroupSpecs"]}
    head = f"--num-cpus={spec['headGroupSpec']['rayStartParams']['num-cpus']}"
    cluster = Cluster(tmp_path_factory.mktemp("pods"), s3.env, workers=0, options=[head])
    try:
        cluster.add("--num-cpus=2")
        cluster.add(f"--num-cpus={groups['gpu']['num-cpus']}", "--num-gpus=1")
        yield cluster
    finally:
        cluster.end()


def run(
    pods: Cluster, documents: dict[str, dict], folder: Path, bucket: str, **encoder: object
) -> subprocess.CompletedProcess[str]:
    """Submits the RayJob's entry point with its own job file, whose addresses are those of this test."""
    job = yaml.safe_load(documents["ConfigMap"]["data"]["job.yaml"])
    job["model"]["name"] = TINY
    job["input"]["path"], job["output"]["path"] = f"s3://{bucket}/corpus/", f"s3://{bucket}/vectors/"
    job["model"]["mirror"] = f"s3://{bucket}/models"
    job["encoder"] |= encoder
    (folder / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    entry = documents["RayJob"]["spec"]["entrypoint"].replace("/etc/kosbert/job.yaml", str(folder / "job.yaml"))
    return pods.ray("job", "submit", "--address", pods.address, "--", *entry.split())


def fill(s3: S3, bucket: str) -> None:
    files = s3.filesystem()
    files.mkdir(bucket)
    rows = "".join(f'{{"id": {number}, "text": "{text}"}}\n' for number, text in enumerate(everyday()[:60]))
    files.pipe_file(f"{bucket}/corpus/a.jsonl", rows.encode())


def test_the_job_runs_on_cpu_nodes_under_a_head_without_cpus(pods, documents, s3: S3, cli, tmp_path: Path) -> None:
    fill(s3, "pods-cpu")
    done = run(pods, documents, tmp_path, "pods-cpu", device="cpu", actors=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: 60 rows in 1 shard" in done.stdout
    # Nodes took the model from the mirror.
    (copy,) = s3.filesystem().ls("pods-cpu/models", detail=False)
    assert s3.filesystem().exists(f"{copy}/complete") and not s3.filesystem().exists("pods-cpu/vectors/_kosbert/model")
    assert "60 rows" in cli("verify", "s3://pods-cpu/vectors/", "--input", "s3://pods-cpu/corpus/", env=s3.env).stdout


def test_a_node_that_claims_a_gpu_it_lacks_ends_the_job_in_one_line(pods, documents, s3: S3, tmp_path: Path) -> None:
    fill(s3, "pods-gpu")
    done = run(pods, documents, tmp_path, "pods-gpu")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    errors = [line for line in said.splitlines() if "error: " in line]
    assert any("there is no cuda device here" in line for line in errors), said
    assert "Traceback" not in said


def test_the_doctor_looks_at_a_node_of_each_kind(pods, s3: S3, cli) -> None:
    s3.filesystem().mkdir("pods-doctor")
    arguments = ["doctor", "bundled:everyday", "s3://pods-doctor/out", "--model", TINY, "--address", pods.address]
    done = cli(*arguments, env=pods.env, code=1)
    nodes = [line for line in done.stdout.splitlines() if "node x1" in line]
    assert len(nodes) == 3, done.stdout
    assert all("s3://pods-doctor/out: readable, writable and deletable" in line for line in nodes)
    (gpu,) = (line for line in nodes if "1 GPUs" in line)
    assert gpu.startswith("BAD"), "it claims a GPU that it lacks"
