"""Bad input is one line that names the culprit, and an exit code that is not 0; nothing is written for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MODEL = "bundled:placeholder"


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


def spoil_text_column(folder: Path) -> None:
    pq.write_table(pa.table({"body": ["가"]}), folder / "a.parquet")


def spoil_type(folder: Path) -> None:
    pq.write_table(pa.table({"text": [1]}), folder / "a.parquet")


def spoil_parquet(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(b"PAR1 and then nothing")


def spoil_empty(folder: Path) -> None:
    (folder / "a.parquet").unlink()


def spoil_kind(folder: Path) -> None:
    (folder / "a.parquet").rename(folder / "a.xlsx")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "in: no such file or folder"),
        (spoil_empty, "in: the folder holds no files"),
        (spoil_kind, "none of its 1 files is a text shard (first: a.xlsx)"),
        (spoil_text_column, "a.parquet: no column 'text'; it has 'body' (set input.text)"),
        (spoil_type, "a.parquet: column 'text' is int64, not a string"),
        (spoil_parquet, "a.parquet: broken Parquet"),
    ],
)
def test_an_unusable_input_is_named(cli, corpus: Path, tmp_path: Path, spoil, message: str) -> None:
    spoil(corpus)
    done = cli("embed", corpus, tmp_path / "out", "--model", MODEL, code=1)
    assert message in one_error(done)
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_input_is_refused(cli, corpus: Path) -> None:
    for output in (corpus, corpus / "vectors"):
        done = cli("embed", corpus, output, "--model", MODEL, code=2)
        assert "output.path" in one_error(done)
    assert [path.name for path in corpus.iterdir()] == ["a.parquet"]


def test_an_unreadable_model_is_named(cli, corpus: Path, tmp_path: Path) -> None:
    for model, message in (
        (tmp_path / "nothing", "nothing: no such model folder"),
        (corpus, "in: not a model folder"),
        ("someone/unknown-model", "someone/unknown-model: the hub cannot be reached and the model is not in the cache"),
    ):
        assert message in one_error(cli("embed", corpus, tmp_path / "out", "--model", model, code=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "encoder.precison=bf16"], "did you mean encoder.precision?"),
        (["--config", "no-such.yaml"], "no-such.yaml: No such file or directory"),
        (["--keep", "embedding"], "output.column"),
        (["--keep", "nothing"], None),
    ],
)
def test_a_wrong_option_is_named(cli, corpus: Path, tmp_path: Path, arguments: list[str], message: str | None) -> None:
    done = cli("embed", corpus, tmp_path / "out", "--model", MODEL, *arguments, code=2 if message else 1)
    assert (message or "no column 'nothing'; it has 'text', 'id' (set input.keep)") in one_error(done)


def test_missing_paths_and_commands_are_usage_errors(cli, corpus: Path) -> None:
    assert "input.path" in one_error(cli("embed", code=2))
    assert "output.path" in one_error(cli("embed", corpus, code=2))
    cli(code=2)
    cli("fly", code=2)


def test_an_output_that_cannot_be_written_is_named(cli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in one_error(cli("embed", corpus, tmp_path / "file" / "out", "--model", MODEL, code=1))


def test_searching_what_is_no_output_is_named(cli, corpus: Path) -> None:
    assert "not an output of kosbert-ray" in one_error(cli("search", corpus, "질문", code=1))


def test_a_ray_cluster_that_is_not_there_is_named(cli, corpus: Path, tmp_path: Path) -> None:
    settings = ["--set", "ray.address=127.0.0.1:9"]
    done = cli("embed", corpus, tmp_path / "out", "--model", MODEL, *settings, code=1)
    assert "Ray at 127.0.0.1:9 cannot be reached" in one_error(done)


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
    done = cli("embed", address, tmp_path / "out", "--model", MODEL, code=1, env={**s3.env, **env})
    line = one_error(done)
    assert message in line
    assert "wrong" not in line


def test_an_output_without_permission_is_named(cli, s3, corpus: Path) -> None:
    if not s3.filesystem().exists("locked"):
        s3.filesystem().mkdir("locked")
    env = {**s3.env, "AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readonly"}
    done = cli("embed", corpus, "s3://locked/out", "--model", MODEL, code=1, env=env)
    assert "permission denied" in one_error(done)


def test_help_and_version_answer(cli) -> None:
    assert "embed" in cli("--help").stdout
    assert "input.keep" in cli("embed", "--help").stdout
    assert cli("--version").stdout.startswith("kosbert-ray ")
