"""Runs that end before their job is done: a trial of some rows, a window of time. A later run loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday, shards

SETTINGS = ["--model", TINY, "--set", "slice.max_rows=100"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of both kinds: with row counts known from their footers, and not."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"{everyday()[number % 520]} {number}" for number in range(1_500)]
    pq.write_table(pa.table({"text": texts[:600]}), folder / "a.parquet", row_group_size=250)
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[600:1200]), "utf-8")
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[1200:]), "utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(cli, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("whole") / "out"
    cli("embed", corpus, target, *SETTINGS)
    return shards(target)


def rows(target: Path) -> int:
    return ds.dataset(target, format="parquet").count_rows()


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_trial_has_whole_slices_and_is_continued(
    cli, corpus: Path, whole: dict[str, bytes], tmp_path: Path, executor: str
) -> None:
    target = tmp_path / "out"
    embed = ["embed", corpus, target, *SETTINGS, "--set", f"executor={executor}"]
    done = cli(*embed, "--limit", "120")
    assert done.stdout.startswith("trial: ")
    assert "to embed the rest, run the same command without --limit" in done.stderr
    assert 120 <= rows(target) < 1_500
    assert shards(target).items() <= whole.items()
    assert not (target / "_SUCCESS").exists()
    assert json.loads(cli("status", target, "--json", code=5).stdout)["share"] < 1
    if executor == "local":
        assert rows(target) == 200
        before = shards(target)
        cli(*embed, "--limit", "150")  # which are there already
        assert shards(target) == before
        cli(*embed, "--limit", "1100")
        assert rows(target) == 1100
        assert cli("search", target, "비", "-k", "1").stdout
    assert cli(*embed).stdout.startswith("done: 1,500 rows in 16 shards")
    assert shards(target) == whole
    assert cli(*embed, "--limit", "10").stdout.startswith("done: 1,500 rows")


def test_a_trial_of_more_rows_than_there_are_is_the_whole_run(
    cli, corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert cli("embed", corpus, tmp_path / "out", *SETTINGS, "--limit", "9000").stdout.startswith("done: 1,500 rows")
    assert shards(tmp_path / "out") == whole


def test_a_trial_of_a_large_corpus_runs_in_this_process(cli, tmp_path: Path) -> None:
    line = json.dumps({"text": "서울에는 사람이 많이 산다. " * 8}) + "\n"
    (tmp_path / "large.jsonl").write_text(line * 100_000, "utf-8")
    embed = ["embed", tmp_path / "large.jsonl", tmp_path / "out", "--model", TINY, "--set", "dedup=corpus"]
    done = cli(*embed, "--limit", "1000", "--set", "slice.max_rows=500")
    assert "executor=local" in done.stderr
    assert "a trial (limit) does not look for texts that occur in several slices" in done.stderr
    assert rows(tmp_path / "out") == 1000


def test_a_run_ends_when_its_time_is_up(cli, corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "out"
    embed = ["embed", corpus, target, *SETTINGS]
    done = cli(*embed, "--max-minutes", "0.0001", "--set", f"on_finish=cat > {tmp_path}/ended.json", code=6)
    assert done.stdout.startswith("time is up: ")
    assert json.loads((tmp_path / "ended.json").read_text("utf-8"))["status"] == "max_minutes"
    cli(*embed, "--max-minutes", "600")
    assert shards(target) == whole


@pytest.mark.parametrize("option", [("--limit", "0"), ("--limit", "many"), ("--max-minutes", "-1")])
def test_a_bound_that_makes_no_sense_is_refused(cli, corpus: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    done = cli("embed", corpus, tmp_path / "out", *option, code=2)
    assert option[0].removeprefix("--").replace("-", "_") in done.stderr


def test_a_bound_at_the_end_hides_no_file_that_failed(cli, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "가"}\n{"text": "나"}\n', "utf-8")
    (folder / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    done = cli("embed", folder, tmp_path / "out", "--model", TINY, "--limit", "2", code=1)
    assert "b.parquet: broken Parquet" in done.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_the_time_is_that_of_the_run_not_of_its_first_step(cli, corpus: Path, tmp_path: Path) -> None:
    embed = ["embed", corpus, tmp_path / "out", *SETTINGS, "--set", "dedup=corpus", "--set", "executor=local"]
    assert cli(*embed, "--max-minutes", "0.0001", code=6).stdout.startswith("time is up: ")
    assert cli(*embed, "--max-minutes", "600").stdout.startswith("done: 1,500 rows")
