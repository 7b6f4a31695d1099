"""``kosbert-ray init``: the file it writes is a job file, with every option there is."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, command

from kosbert_ray.cli.job_file import HEADER, job_file
from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.settings import describe


def test_every_option_is_described_and_in_the_file() -> None:
    options = describe(JobConfig)
    content = yaml.safe_load(re.sub("^# ?", "", job_file("job.yaml", {}).split("\n\n", 1)[1], flags=re.MULTILINE))
    written = {f"{key}.{inner}" for key, value in content.items() if isinstance(value, dict) for inner in value}
    written |= {key for key, value in content.items() if not isinstance(value, dict)}
    assert written == {option.name for option in options}
    assert not [option.name for option in options if not option.description or option.description.endswith(".")]


def test_what_is_commented_out_is_the_default() -> None:
    lines = job_file("job.yaml", {}).splitlines()[HEADER.count("\n") :]
    uncommented = "\n".join(line.removeprefix("# ") for line in lines)
    assert load_config(yaml.safe_load(uncommented)) == JobConfig()
    assert not any(line and not line.startswith("#") for line in lines)


def test_options_become_a_job_that_runs(cli, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    given = ["--input", "bundled:everyday", "--model", "bundled:kosbert-mini", "--output", tmp_path / "out"]
    done = cli("init", path, *given, "--keep", "id,text", "--text", "text")
    assert f"wrote {path}" in done.stdout
    config = load_config(str(path))
    assert config.input.keep == ("id", "text") and config.output.path == str(tmp_path / "out")
    assert re.search(r"to embed: \d+ new files", cli("embed", "--config", path, "--dry-run").stdout)


def test_answers_on_a_terminal_fill_it(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command("init", tmp_path / "a.yaml"), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.write(ours, b"corpus/\n\nmy/model\n{title} {body}\nid,year\n")
    assert process.wait(60) == 0
    os.close(theirs)
    os.close(ours)
    config = load_config(str(tmp_path / "a.yaml"))
    assert (config.input.path, config.output.path, config.model.name) == ("corpus/", "vectors", "my/model")
    assert (config.input.text, config.input.keep) == ("{title} {body}", ("id", "year"))


def test_a_file_that_is_there_is_not_replaced_unless_asked(told, cli, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    assert "already exists" in told("init", path, code=2)
    assert path.read_text() == "mine"
    cli("init", path, "--force")
    assert load_config(str(path)).output.path == "vectors"
    assert "No such file" in told("init", tmp_path / "no" / "job.yaml", code=2)
    assert "keep: a column is named twice" in told("init", tmp_path / "b.yaml", "--keep", "a,a", code=2)
    assert not (tmp_path / "b.yaml").exists()


def test_an_example_is_copied(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote local_gpu.yaml" in cli("init", "--example", "local_gpu").stdout
    assert (tmp_path / "local_gpu.yaml").read_bytes() == (ROOT / "configs" / "local_gpu.yaml").read_bytes()
    assert "already exists" in cli("init", "--example", "local_gpu", code=2).stderr
    cli("init", "mine.yaml", "--example", "cluster_s3")
    load_config(yaml.safe_load((tmp_path / "mine.yaml").read_text("utf-8")))
    assert "--example nothing: there are cluster_s3, " in cli("init", "--example", "nothing", code=2).stderr
    assert cli("init", "--example", "list").stdout.count("\n") == len(list((ROOT / "configs").iterdir()))


def test_the_demo_needs_nothing_and_shows_its_commands(cli, tmp_path: Path) -> None:
    shown = cli("demo", tmp_path / "demo").stdout
    assert f"$ kosbert-ray embed bundled:everyday {tmp_path}/demo --model bundled:kosbert-mini --keep id" in shown
    assert "done: 520 rows in 8 shards" in shown
    assert len([line for line in shown.splitlines() if line.startswith("0.")]) == 5
    assert "done: 520 rows in 8 shards" in cli("demo", tmp_path / "demo").stdout
