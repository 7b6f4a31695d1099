"""The operators in a real Airflow with its own environment, on a real Ray cluster and object store.

``make test-airflow`` creates the environment and runs these tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster
from conftest import ROOT, S3, alive, everyday, free_port, wait_for

AIRFLOW = ROOT / ".venv-airflow" / "bin" / "airflow"
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
DAILY, PROBE = "kosbert_embed_daily", "probe"
PROBE_DAG = """
from datetime import datetime, timedelta
from airflow.sdk import DAG
from kosbert_ray.integrations.airflow import KosbertEmbedOperator

with DAG("probe", schedule=None, start_date=datetime(2026, 1, 1), params={"corpus": "", "deferrable": True}):
    for name, deferrable in (("embed", True), ("embed_waiting", False)):
        KosbertEmbedOperator(
            task_id=name,
            address="{{ var.value.kosbert_address }}",
            input_path="s3://corpus/{{ params.corpus }}/",
            output_path="s3://vectors/{{ params.corpus }}-" + name + "/",
            model="bundled:kosbert-mini",
            config={"slice": {"max_rows": 20}},
            deferrable=deferrable,
            retries=1,
            retry_delay=timedelta(seconds=1),
        )
"""

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]


class Airflow:
    """An Airflow installation with its own home.

    Args:
        home: home folder.
        env: environment variables in addition to those of this process.
    """

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        options = {
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__DAGS_FOLDER": str(home / "dags"),
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "API__HOST": "127.0.0.1",
            "API__PORT": str(port),
            "API__BASE_URL": self.address,
            "API__WORKERS": "1",
            "API_AUTH__JWT_SECRET": "0123456789abcdef" * 4,
            "LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        }
        self.env = {**os.environ, **env, "AIRFLOW_HOME": str(home)}
        self.env |= {f"AIRFLOW__{name}": value for name, value in options.items()}
        self.env["PATH"] = f"{AIRFLOW.parent}:{os.environ['PATH']}"
        self.log = home / "standalone.log"
        (home / "dags").mkdir(parents=True)
        shutil.copy(ROOT / "jobs" / "airflow_dag.py", home / "dags")
        (home / "dags" / "probe.py").write_text(PROBE_DAG)
        self.run("db", "migrate")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> str:
        done = subprocess.run([AIRFLOW, *arguments], env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    def start(self) -> None:
        """Starts scheduler, triggerer, DAG processor and API server."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([AIRFLOW, "standalone"], env=self.env, stdout=log, stderr=log)
        wait_for(lambda: self.dags() >= {DAILY, PROBE}, 120, "no DAGs")
        for dag in (DAILY, PROBE):
            self.call("PATCH", f"dags/{dag}", is_paused=False)

    def dags(self) -> set[str]:
        try:
            return {dag["dag_id"] for dag in self.call("GET", "dags")["dags"]}
        except OSError:
            return set()

    def call(self, method: str, path: str, **content: object) -> Any:
        request = urllib.request.Request(
            f"{self.address}/api/v2/{path}",
            json.dumps(content).encode() if content else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def trigger(self, corpus: str, other: str) -> str:
        """Triggers the probe DAG for a corpus, with its ``other`` task marked as successful. Returns the API path."""
        run = self.call("POST", f"dags/{PROBE}/dagRuns", logical_date=None, conf={"corpus": corpus})["dag_run_id"]
        path = f"dags/{PROBE}/dagRuns/{run}/taskInstances"
        self.call("PATCH", f"{path}/{other}", new_state="success")
        return path

    def state(self, task: str) -> str:
        return str(self.call("GET", task)["state"])

    def end(self) -> None:
        if self.process:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGINT)
            psutil.wait_procs(family, 20)
            for process in alive(family):
                process.kill()
            self.process.wait(30)


@pytest.fixture(scope="module")
def cluster(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"), s3.env)
    yield found
    found.end()


@pytest.fixture(scope="module")
def airflow(s3: S3, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    if not AIRFLOW.exists():
        pytest.skip(f"no Airflow at {AIRFLOW} (make test-airflow installs it)")
    files = s3.filesystem()
    files.mkdir("corpus")
    files.mkdir("vectors")
    for day in DAYS:
        put(files, day, 100)
    put(files, "large", 520, 40)
    put(files, "large-too", 520, 40)
    rows = [
        "sentence1\tsentence2\tscore",
        "고양이가 잔다\t고양이가 자고 있다\t5",
        "비가 온다\t눈이 온다\t2",
        "밥을 먹는다\t차가 간다\t0",
    ]
    files.pipe_file("corpus/sts.tsv", "\n".join(rows).encode())
    variables = {
        "ADDRESS": cluster.address,
        "INPUT": "s3://corpus",
        "OUTPUT": "s3://vectors",
        "MODEL": "bundled:kosbert-mini",
        "STS": "s3://corpus/sts.tsv",
        "LEAST": "50",
    }
    token = {name: cluster.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    env = {f"AIRFLOW_VAR_KOSBERT_{name}": value for name, value in variables.items()}
    found = Airflow(tmp_path_factory.mktemp("airflow") / "home", {**s3.env, **token, **env})
    yield found
    found.end()


@pytest.fixture(scope="module")
def scheduler(airflow: Airflow) -> Airflow:
    airflow.start()
    return airflow


def put(files: Any, folder: str, rows: int, times: int = 1) -> None:
    texts = [f"{text} {folder} {number}" for number in range(times) for text in everyday()[:rows]]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    files.pipe_file(f"corpus/{folder}/a.jsonl", "\n".join(lines).encode())


def shards(files: Any, folder: str) -> dict[str, str]:
    """Returns the ETag and modification time of each shard, which change if it is written again."""
    files.invalidate_cache()
    found = files.find(f"vectors/{folder}", detail=True)
    return {
        name: f"{entry['ETag']} {entry['LastModified']}"
        for name, entry in found.items()
        if name.endswith(".parquet") and "/_kosbert/" not in name
    }


def submissions(cluster: Cluster, output: str) -> dict[str, str]:
    """Returns the status of each submission that writes to an output, oldest first."""
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {Path(cluster.env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    jobs = JobSubmissionClient(cluster.address, headers=headers).list_jobs()
    mine = [job for job in jobs if (job.metadata or {}).get("output") == output]
    return {str(job.submission_id)[-1]: job.status.value for job in sorted(mine, key=lambda job: job.start_time or 0)}


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    def holds() -> bool:
        try:
            return condition()
        except urllib.error.URLError:
            return False

    wait_for(holds, seconds, what)


def test_dags_test_runs_the_whole_dag(airflow: Airflow, s3: S3) -> None:
    put(s3.filesystem(), "2026-10-31", 50)
    log = airflow.run("dags", "test", DAILY, "2026-10-31")
    assert "state=success" in log or "successful" in log
    assert "verified: s3://vectors/2026-10-31: 50 rows in 1 shard" in log
    assert s3.filesystem().exists("vectors/2026-10-31/_SUCCESS")


def test_three_days_are_backfilled(scheduler: Airflow, s3: S3) -> None:
    scheduler.run("backfill", "create", "--dag-id", DAILY, "--from-date", DAYS[0], "--to-date", DAYS[-1])

    def states() -> list[str]:
        runs = scheduler.call("GET", f"dags/{DAILY}/dagRuns")["dag_runs"]
        return sorted(run["state"] for run in runs if run["run_type"] == "backfill")

    until(lambda: states() == ["success"] * 3, 300, f"not all days are done: {scheduler.log.read_text()[-3000:]}")
    runs = scheduler.call("GET", f"dags/{DAILY}/dagRuns")["dag_runs"]
    for run in runs:
        if run["run_type"] == "backfill":
            path = f"dags/{DAILY}/dagRuns/{run['dag_run_id']}/taskInstances/embed/xcomEntries/return_value"
            totals = scheduler.call("GET", path)["value"]
            totals = json.loads(totals) if isinstance(totals, str) else totals
            assert (totals["rows"], totals["rejected"]) == (100, 0)
            assert totals["manifest"].startswith("_kosbert/manifests/")
    events = scheduler.call("GET", "assets/events?limit=50")["asset_events"]
    assert {event["extra"]["output"] for event in events} >= {f"s3://vectors/{day}/" for day in DAYS}
    for day in DAYS:
        assert s3.filesystem().exists(f"vectors/{day}/_SUCCESS")


def test_a_job_that_dies_is_retried_and_resumes(scheduler: Airflow, cluster: Cluster, s3: S3) -> None:
    files, output = s3.filesystem(), "s3://vectors/large-embed/"
    task = scheduler.trigger("large", other="embed_waiting") + "/embed"
    until(lambda: len(shards(files, "large-embed")) > 20, 120, "no shards")
    nodes = [process for node in cluster.nodes for process in psutil.Process(node.pid).children(recursive=True)]
    drivers = [item for item in nodes if item.is_running() and "kosbert_ray.cli" in item.cmdline()]
    for driver in drivers:
        driver.kill()
    committed = shards(files, "large-embed")
    assert not files.exists("vectors/large-embed/_SUCCESS")
    until(lambda: scheduler.state(task) == "success", 300, f"not done: {scheduler.log.read_text()[-3000:]}")
    assert scheduler.call("GET", task)["try_number"] == 2
    assert submissions(cluster, output) == {"1": "FAILED", "2": "SUCCEEDED"}
    after = shards(files, "large-embed")
    assert len(after) == 520 * 40 // 20
    # The killed driver's workers may commit more shards before Ray stops them, so compare only those listed first.
    assert {name: after[name] for name in committed} == committed


@pytest.mark.parametrize("task", ["embed", "embed_waiting"])
def test_a_killed_task_stops_its_job(scheduler: Airflow, cluster: Cluster, s3: S3, task: str) -> None:
    files, folder = s3.filesystem(), f"large-too-{task}"
    path = scheduler.trigger("large-too", other="embed" if task == "embed_waiting" else "embed_waiting")
    until(lambda: len(shards(files, folder)) > 20, 120, "no shards")
    assert list(submissions(cluster, f"s3://vectors/{folder}/").values()) == ["RUNNING"]
    scheduler.call("PATCH", f"{path}/{task}", new_state="failed")
    until(lambda: list(submissions(cluster, f"s3://vectors/{folder}/").values()) == ["STOPPED"], 120, "it runs on")
    assert scheduler.state(f"{path}/{task}") == "failed"
    assert not files.exists(f"vectors/{folder}/_SUCCESS")


def test_a_failed_job_fails_the_task(scheduler: Airflow, cluster: Cluster) -> None:
    task = scheduler.trigger("nowhere", other="embed_waiting") + "/embed"
    until(lambda: scheduler.state(task) == "failed", 180, "it never failed")
    assert scheduler.call("GET", task)["try_number"] == 2
    assert submissions(cluster, "s3://vectors/nowhere-embed/") == {"1": "FAILED", "2": "FAILED"}
