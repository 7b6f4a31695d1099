"""The job file is checked before anything runs, and what is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from kosbert_ray.config import load_config
from kosbert_ray.deploy.ray_jobs import JOB_FILE, ClusterJob
from kosbert_ray.errors import UsageError

FOLDER = Path(__file__).parent.parent / "configs"
# The others are recipes (test_train) and clusters (test_deployment).
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith(("train_", "ray")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_ready_job_files_are_valid(path: Path) -> None:
    assert load_config(str(path), []).model.name


def test_later_settings_overrule_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: {name: a}\ninput: {keep: [id]}\nslice: {max_bytes: 1MiB}\n")
    path = str(tmp_path / "job.yaml")
    assert load_config(path, []).model.name == "a"
    config = load_config(path, ["model.name=b", "encoder.actors=[1, 4]", "input.keep=id,title"])
    assert (config.model.name, config.encoder.actors, config.input.keep) == ("b", (1, 4), ("id", "title"))
    assert load_config(path, ["model.name=b"], {"model.name": "c"}).model.name == "c"
    assert config.slice.max_bytes == 2**20


def test_all_mistakes_of_a_file_are_told_with_their_lines(told, tmp_path: Path, cli) -> None:
    (tmp_path / "job.yaml").write_text(
        "model: {nam: a}\ninput:\n  path: in\n  keep: [id, id]\nencoder:\n  precision: int3\n  actors: 0\nmax_reject: 1\n"
    )
    path = tmp_path / "job.yaml"
    said = cli("plan", "--config", path, "--set", "stall_timeout=soon", code=2).stderr.splitlines()
    assert [line.partition(": error: ")[2] for line in said] == [
        f"{path}: stall_timeout: 'soon' is no time; write it like 300 or 5m",
        f"{path}:1: unknown option model.nam; did you mean model.name?",
        f"{path}:2: input.keep: a column is named twice",
        f"{path}:6: encoder.precision: input should be 'auto', 'fp32', 'bf16', 'fp16' or 'int8', not 'int3'",
        f"{path}:7: encoder.actors: input should be greater than 0, not 0",
        f"{path}:8: unknown option max_reject; did you mean max_rejected?",
    ]


def test_short_forms_times_and_percents(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: a\ninput: in\noutput: out\nmax_rejected: 5%\nstall_timeout: 5m\n")
    config = load_config(
        str(tmp_path / "job.yaml"), ["model.prompt=q", "storage.timeout=90s", "storage.retry_seconds=0.5h"]
    )
    assert (config.model.name, config.model.prompt, config.input.path, config.output.path) == ("a", "q", "in", "out")
    assert (config.max_rejected, config.stall_timeout) == (0.05, 300.0)
    assert (config.storage.timeout, config.storage.retry_seconds) == (90.0, 1800.0)
    assert load_config({"model": "a"}).model.name == "a"


def test_an_option_of_an_earlier_version_is_accepted_and_told_once(tmp_path: Path, logged) -> None:
    messages = logged("kosbert_ray.settings")
    (tmp_path / "job.yaml").write_text("model: {name: a, allow_pickle: true}")
    config = load_config(str(tmp_path / "job.yaml"), ["model.allow_pickle=true"])
    assert messages == ["model.allow_pickle is no longer needed"]
    assert config == load_config(None, ["model.name=a"])
    with pytest.raises(UsageError, match="unknown option model.allow_pickel"):
        load_config(None, ["model.allow_pickel=true"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoder.precison=bf16", r"unknown option encoder.precison; did you mean encoder.precision\?"),
        ("modle.name=x", r"unknown option modle; did you mean model\?"),
        ("encoder.zzz=1", "unknown option encoder.zzz; known are precision, device, actors, threads, token_budget"),
        (
            "encoder.precision=int3",
            "encoder.precision: input should be 'auto', 'fp32', 'bf16', 'fp16' or 'int8', not 'int3'",
        ),
        ("encoder.actors=0", "encoder.actors: input should be greater than 0, not 0"),
        ("encoder.actors=[4, 2]", "encoder.actors: the minimum is above the maximum"),
        ("slice.max_bytes=lots", "slice.max_bytes: 'lots' is no size; write it like 32MiB"),
        ("max_rejected=1.5", "max_rejected: 1.5 is neither a share from 0.0 to 1.0 nor a whole number of rows"),
        ("max_rejected=-1", "max_rejected: -1 is neither"),
        ("max_rejected=true", "max_rejected: True is neither"),
        ("input.keep=__x", "two underscores"),
        ("input.keep=a,a", "named twice"),
        ("input.keep=embedding", "output.column: 'embedding' is also among input.keep"),
        ("encoder", "write it as section.key=value"),
        ("max_rejected.x=1", "max_rejected"),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        load_config(None, [setting])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "mapping of sections"),
        ("a: [", "not YAML"),
        ("a: &a [*a]", "contains itself"),
        ("input: one\ndedup: slice\ninput: two", "input is set twice, in lines 1 and 3"),
        (None, "No such file"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_config(str(tmp_path / "job.yaml"), [])


def test_secrets_stay_out_of_what_is_published() -> None:
    config = load_config(
        None, ["storage.access_key_id=hush", "storage.secret_access_key=hush", "storage.session_token=hush"]
    )
    assert config.storage.s3fs_kwargs()["secret"] == "hush"
    assert "hush" not in str(config.public())
    assert "hush" not in repr(config)


def test_variables_and_the_home_folder_are_expanded_where_the_job_runs(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS", str(tmp_path / "말뭉치"))
    monkeypatch.setenv("ROWS", "2")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "말뭉치").mkdir()
    (tmp_path / "말뭉치" / "a.jsonl").write_text('{"text": "가"}\n{"text": "나"}\n{"text": "다"}\n', "utf-8")
    shutil.copytree(TINY, tmp_path / "model")
    job = tmp_path / "job.yaml"
    job.write_text(
        "model: ${HOME}/model\ninput: ${CORPUS}/a.jsonl\noutput: {path: ~/out}\nslice: {max_rows: '${ROWS}'}\n", "utf-8"
    )
    assert cli("embed", "--config", job).stdout.startswith("done: 3 rows in 2 shards")
    recorded = json.loads((tmp_path / "out" / "_kosbert" / "job.json").read_text("utf-8"))["config"]
    assert recorded["model"]["name"] == "${HOME}/model"
    assert recorded["input"]["path"] == "${CORPUS}/a.jsonl"
    assert recorded["output"]["path"] == "~/out"
    assert recorded["slice"]["max_rows"] == 2
    assert cli("search", tmp_path / "out", "가", "-k", "1").stdout
    assert cli("embed", "--config", job, "--set", f"input.path={tmp_path}/말뭉치/a.jsonl").stdout.startswith("done: 3 rows")
    assert cli("embed", "--resume", tmp_path / "out").stdout.startswith("done: 3 rows")

    monkeypatch.delenv("CORPUS")
    done = cli("embed", "--config", job, code=2)
    assert done.stderr == f"kosbert-ray: error: {job}:2: input.path: the variable CORPUS is not set\n"


def test_a_submitted_job_has_its_variables_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/here")
    monkeypatch.setenv("BUCKET", "here")
    job = tmp_path / "job.yaml"
    job.write_text("input: ${NOT_HERE}/in\noutput: ~/out\nmodel: s3://${BUCKET}/model\n", "utf-8")
    ClusterJob.of(load_config(str(job), expand=False)).write(tmp_path)
    sent = yaml.safe_load((tmp_path / JOB_FILE).read_text("utf-8"))
    assert sent == {
        "input": {"path": "${NOT_HERE}/in"},
        "output": {"path": "~/out"},
        "model": {"name": "s3://${BUCKET}/model"},
    }


LISTS = {
    "output.vectors=dense, multi_vector": ("dense", "multi_vector"),
    "output.dtype=float32 ,float16": ("float32", "float16"),
    "output.publish=iceberg , delta": ("iceberg", "delta"),
    "input.keep=id, the title,": ("id", "the title"),
    "input.columns=' id, text'": (" id", "text"),
    "input.normalize=nfc, whitespace": ("nfc", "whitespace"),
    "input.null_values=N/A, -": ("N/A", "-"),
}


@pytest.mark.parametrize("setting", LISTS)
def test_a_list_may_have_spaces_around_its_commas(setting: str) -> None:
    section, option = setting.partition("=")[0].split(".")
    assert getattr(getattr(load_config(None, [setting]), section), option) == LISTS[setting]
