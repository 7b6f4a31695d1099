"""Secrets stay where they are, a model's files are data and not programs, and a cluster may ask for a token."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import yaml
from cluster import Cluster
from conftest import ROOT, SECRET, TINY, everyday

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.deploy.ray_jobs import ClusterJob
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import UsageError
from kosbert_ray.settings import describe

FP32 = EncoderOptions(precision="fp32", device="cpu")


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
        arguments += ["--set", "executor=ray"]
        ray_logs.mkdir()
        for code, more in (
            (0, []),
            (1, ["--set", "model.max_seq_length=9"]),
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


HIDDEN = [option for option in describe(JobConfig) if option.hidden]


def planted(*, recorded: bool) -> dict[str, object]:
    """A job file with the secret in every option that may hold one, but for those that job.json has anyway."""
    options = {option.name: SECRET for option in HIDDEN if recorded or not option.recorded}
    options["ray.runtime_env"] = {"env_vars": {"TOKEN": SECRET}}
    options["on_finish"] = f"exit 7 # {SECRET}"
    tree: dict[str, object] = {}
    for name, value in options.items():
        *sections, key = name.split(".")
        inner: dict = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return tree


def test_options_that_may_hold_a_secret_are_these() -> None:
    """An option that came to be private, or ceased to be, changes what job.json holds: on purpose only."""
    secrets = ["storage.access_key_id", "storage.secret_access_key", "storage.session_token"]
    assert [option.name for option in HIDDEN] == ["storage.endpoint_url", *secrets, "ray.runtime_env", "on_finish"]
    assert [option.name for option in HIDDEN if option.secret] == secrets
    assert [option.name for option in HIDDEN if option.recorded] == ["storage.endpoint_url"]


@pytest.mark.parametrize("name", [option.name for option in HIDDEN])
def test_a_wrong_value_of_a_private_option_is_not_shown(name: str, tmp_path: Path) -> None:
    """Nor in the traceback, which Airflow for one logs."""
    section = name.partition(".")[0]
    wrong = [f"{name}=[{SECRET}", f"{name}=[{SECRET}]", f"{name}={{a: [{SECRET}]}}", f"{name}z={SECRET}"]
    wrong += [f"{name}.a={SECRET}", f"{section}=[{SECRET}]", f"{name}={SECRET}\n- [", f"{name}: {SECRET}"]
    (tmp_path / "job.yaml").write_text(f"{section}: [{SECRET}\n")
    refused = 0
    for source, setting in [(None, setting) for setting in wrong] + [(str(tmp_path / "job.yaml"), "model.name=x")]:
        try:
            config = load_config(source, [setting])
            shown = f"{config!r} {config}"
        except UsageError as error:
            refused += 1
            shown = "".join(traceback.format_exception(error))
        assert SECRET not in shown, setting
    assert refused > 5


def test_a_planted_secret_is_in_no_representation_of_the_job_and_sent_to_no_cluster() -> None:
    config = load_config(planted(recorded=True))
    assert SECRET not in f"{config!r} {config} {config.storage!r} {config.ray}"
    config = load_config(planted(recorded=False))
    assert SECRET not in f"{config.public()} {config.public(only_set=True)}"
    with pytest.raises(UsageError, match=r"storage\.access_key_id: secrets are not sent to a cluster") as raised:
        ClusterJob.of(config)
    assert SECRET not in str(raised.value)
    assert pickle.loads(pickle.dumps(config.storage)) == config.storage, "workers get the options"


def test_a_run_writes_and_prints_none_of_its_private_options(cli, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(planted(recorded=False)))
    done = cli("embed", "bundled:everyday", tmp_path / "out", "--model", TINY, "--config", tmp_path / "job.yaml")
    assert "on_finish: the command ended with exit code 7" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"job.json", "_SUCCESS"} <= {path.name for path in written}
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


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


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_job_is_submitted_to_a_cluster_that_asks_for_a_token_and_refused_without_it(tmp_path: Path) -> None:
    """As README says: RAY_AUTH_MODE=token on both sides, and the cluster's token with the client."""
    (tmp_path / "wrong").write_text("fedcba9876543210" * 4)
    cluster = Cluster(tmp_path, {}, workers=0, options=["--num-cpus=3"])
    try:
        program = f"{sys.executable} {ROOT}/jobs/embed.py --config {ROOT}/configs/quickstart.yaml"
        program += f" --set output.path={tmp_path}/out --set input.path={ROOT}/kosbert_ray/bundled/everyday"
        submit = ["job", "submit", "--address", cluster.address, "--", *program.split()]
        for denied in ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, {"RAY_AUTH_MODE": "disabled"}):
            done = cluster.ray(*submit, env=denied)
            assert done.returncode != 0, done.stdout
            assert re.search("401|403|[Uu]nauth|[Tt]oken", done.stdout + done.stderr)
        assert not (tmp_path / "out").exists()
        tried = [cluster.ray(*submit)]
        while "No available agent" in tried[-1].stderr:  # the cluster has just started
            time.sleep(1)
            tried.append(cluster.ray(*submit))
        assert tried[-1].returncode == 0, tried[-1].stdout + tried[-1].stderr
        assert "done: 520 rows in 8 shards" in tried[-1].stdout
    finally:
        cluster.end()
