"""The command itself: what it answers when a store, a cluster or a device refuses (``test_bad_inputs`` has the rest)."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY
from one_ray import ROOT

from kosbert_ray.cli.main import whole_parser
from kosbert_ray.config import load_config


def one_error(done) -> str:
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["가", "나"], "id": [1, 2]}), folder / "a.parquet")
    return folder


def test_a_gpu_where_there_is_none_is_told_at_once(cli, corpus: Path, tmp_path: Path) -> None:
    embed = ["embed", corpus, tmp_path / "out", "--model", TINY, "--set", "encoder.device=cuda"]
    assert "this machine has no GPU; use encoder.device=cpu" in one_error(cli(*embed, code=1))
    done = cli(*embed, "--set", "executor=ray", code=1)
    assert "no node of the Ray cluster has a GPU; use encoder.device=cpu" in one_error(done)


def test_without_a_command_help_shows_all_of_them(cli) -> None:
    shown = cli().stdout
    assert all(f"  {name} " in shown for name in ("embed", "search", "verify", "train"))
    assert "use an output:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch", "out"], "kosbert-ray: error: there is no command 'serch'; did you mean search?; see kosbert-ray --help"),
        (["fly"], "kosbert-ray: error: there is no command 'fly'; see kosbert-ray --help"),
        (
            ["search", "out", "--promt=x"],
            "unrecognized arguments: --promt=x; did you mean --prompt?; see kosbert-ray search",
        ),
        (["embed", "in", "out", "--mod", "x"], "unrecognized arguments: --mod x; did you mean --model?"),  # no abbreviation
        (["embed", "in", "out", "/"], "unrecognized arguments: / (INPUT is one path"),
        (["search"], "kosbert-ray: error: OUTPUT: missing; name an embedded folder, or a job file with output.path"),
        (["ls", "out", "--set", "encoder.engine=torch"], "--set encoder.engine: not used by this command, which takes"),
        (["search", "out", "비", "--set", "input.text=body"], "--set input.text: not used by this command"),
    ],
)
def test_unknown_names_are_one_line_with_a_suggestion(cli, arguments: list[str], message: str) -> None:
    (line,) = cli(*arguments, code=2).stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("address", "env", "message"),
    [
        ("s3://no-such-bucket/x", {}, "s3://no-such-bucket/x: no such bucket"),
        ("s3://cli-bucket/nothing", {}, "no such file or folder"),
        ("s3://cli-bucket/in", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "permission denied"),
        ("s3://cli-bucket/in", {"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_a_wrong_bucket_path_secret_or_profile_is_named(cli, s3, tmp_path: Path, address, env, message: str) -> None:
    files = s3.filesystem()
    if not files.exists("cli-bucket"):
        files.mkdir("cli-bucket")
        files.pipe_file("cli-bucket/in/a.jsonl", json.dumps({"text": "가"}).encode())
    done = cli("embed", address, tmp_path / "out", "--model", TINY, code=1, env={**s3.env, **env})
    line = one_error(done)
    assert message in line
    assert "wrong" not in line


def test_an_output_without_permission_is_named(cli, s3, corpus: Path) -> None:
    if not s3.filesystem().exists("locked"):
        s3.filesystem().mkdir("locked")
    env = {**s3.env, "AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readonly"}
    done = cli("embed", corpus, "s3://locked/out", "--model", TINY, code=1, env=env)
    assert "permission denied" in one_error(done)


def test_help_and_version_answer(cli) -> None:
    assert "embed" in cli("--help").stdout
    assert "input.keep" in cli("embed", "--help").stdout
    assert cli("--version").stdout.startswith("kosbert-ray ")


def test_every_command_has_examples_and_each_of_them_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = whole_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in {"": parser, **commands}.items():
        examples = command.get_default("examples")
        with pytest.raises(SystemExit):
            whole_parser().parse_args([name, "--help"] if name else ["--help"])
        shown = capsys.readouterr().out
        assert examples
        for what, line in examples:
            assert f"  {what}:\n    {line}\n" in shown
            if not line.startswith("eval"):
                assert whole_parser().parse_args(shlex.split(line)[1:]).run


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    command = shutil.which("kosbert-ray", path=str(Path(sys.executable).parent))
    assert command

    def completed(*words: str) -> set[str]:
        line = " ".join(words)
        script = f"""
            source <({command} completion bash)
            COMP_WORDS=({line}{" ''" if not words[-1] else ""}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'
            COMP_POINT={len(line)}
            "$(complete -p kosbert-ray | sed 's/.*-F \\([^ ]*\\).*/\\1/')" kosbert-ray
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
        return {word.strip() for word in done.stdout.splitlines()}

    assert {"embed", "export", "evaluate"} <= completed("kosbert-ray", "e")
    assert completed("kosbert-ray", "search", "--top") == {"--top-k"}
    assert completed("kosbert-ray", "search", "--similarity", "c") == {"cosine"}
    assert "corpus.jsonl" in completed("kosbert-ray", "embed", "cor")


def test_a_job_file_names_the_output_for_every_command(cli, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    cli("embed", corpus, output, "--model", TINY)
    job = tmp_path / "job.yaml"
    job.write_text(f"model: somebody/else\noutput: {output}\nslice: {{max_rows: 10}}\n", "utf-8")
    config = ["--config", job]
    for command in ("status", "verify", "ls", "rejected"):
        assert cli(command, *config).stdout == cli(command, output).stdout or command == "verify"
    found = cli("search", *config, "비가 온다", "눈이 온다", "-k", "1").stdout
    assert [line for line in found.splitlines() if line in ("비가 온다", "눈이 온다")] == ["비가 온다", "눈이 온다"]


def test_quiet_shows_results_and_warnings_only(cli, corpus: Path, tmp_path: Path) -> None:
    done = cli("embed", corpus, tmp_path / "out", "--model", TINY, "-q")
    assert done.stdout.startswith("done: ")
    assert all("warning: " in line for line in done.stderr.splitlines())
    done = cli("embed", corpus, tmp_path / "loud", "--model", TINY, "-v")
    (shard,) = (tmp_path / "loud").glob("*.parquet")
    assert f"committed: {shard.name}: 2 rows, " in done.stderr
    assert "; the model is in /" in done.stderr
    assert "not allowed with argument" in cli("embed", corpus, tmp_path / "out", "-q", "-v", code=2).stderr


def test_the_schema_accepts_job_files_and_finds_mistakes(cli, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    path = tmp_path / "schema.json"
    cli("schema", "-o", path)
    schema = json.loads(path.read_text("utf-8"))
    assert json.loads(cli("schema").stdout) == schema
    cli("init", tmp_path / "job.yaml", "--input", "corpus/", "--keep", "id,title")
    text = (tmp_path / "job.yaml").read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=kosbert-ray.schema.json\n")
    files = [
        text,
        *((ROOT / "configs" / f"{name}.yaml").read_text("utf-8") for name in ("cluster_s3", "local_gpu", "quickstart")),
    ]
    files.append(
        "model: klue/bert-base\nslice: {max_bytes: 32MiB}\nstall_timeout: 5m\nmax_rejected: 5%\ninput: {keep: 'a,b'}"
    )
    for content in files:
        jsonschema.validate(yaml.safe_load(content), schema)
        load_config(yaml.safe_load(content))
    for wrong in ("modle: x", "encoder: {engine: tensorflow}", "slice: {max_rows: many}"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(wrong), schema)
