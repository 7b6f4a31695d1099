"""A model gives way to another: the next output beside the old, the two compared, and the pointer moved."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import TINY, everyday

pytestmark = pytest.mark.slow  # README's commands show the way through it, in the fast tests
FP32 = ["--set", "encoder.precision=fp32"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files; a row of the first cannot be embedded."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        rows = [{"text": text, "id": f"{number}-{row}"} for row, text in enumerate(everyday()[number * 100 :][:100])]
        if number == 0:
            rows[40]["text"] = None
        (folder / f"{number}.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def home(cli, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose output v1 is current, and v2 beside it of another model."""
    folder = tmp_path_factory.mktemp("home") / "vectors"
    settings = ["--keep", "id", "--set", "slice.max_rows=30", "--set", "max_rejected=1", *FP32]
    cli("embed", corpus, folder / "v1", "--model", TINY, *settings)
    assert "is now v1" in cli("promote", folder / "v1").stdout
    done = cli("embed", "--into", folder / "v2", "--model", "bundled:kosbert-mini", *FP32)
    assert f"done: 199 rows in 8 shards in {folder / 'v2'}, 1 row rejected" in done.stdout
    return folder


def test_the_next_output_is_of_the_same_job_with_another_model(home: Path) -> None:
    jobs = [json.loads((home / name / "_kosbert" / "job.json").read_text("utf-8")) for name in ("v1", "v2")]
    one, other = (job["config"] for job in jobs)
    assert one["model"]["name"] != other["model"]["name"]
    assert one["output"] | {"path": ""} == other["output"] | {"path": ""}
    assert [one[name] for name in ("input", "slice", "dedup", "max_rejected")] == [
        other[name] for name in ("input", "slice", "dedup", "max_rejected")
    ]
    ids = [ds.dataset(home / name, format="parquet").to_table(columns=["id"])["id"].to_pylist() for name in ("v1", "v2")]
    assert sorted(ids[0]) == sorted(ids[1])


def test_two_models_are_compared_on_the_rows_they_have_in_common(cli, home: Path) -> None:
    lines = cli("diff", home / "v1", home / "v2").stdout.splitlines()
    figures = [line.split()[-2:] for line in lines[2:6]]
    assert figures == [["128", "256"], ["199", "199"], ["0", "0"], ["199", "199"]]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", lines[6])]
    assert lines[6].startswith("of 199 rows in common: ")
    assert 5 < shares[0] < 100
    same = cli("diff", home / "v1", home / "v1", "--json", "-k", "3", "--sample", "50").stdout
    near = json.loads(same)["agreement"]
    assert (near["rows"], near["k"], near["overlap"], near["same_nearest"]) == (50, 3, 1, 1)
    assert near["cosine"] == pytest.approx(1, abs=1e-6)


def test_files_of_other_versions_are_not_compared(cli, home: Path, corpus: Path, tmp_path: Path) -> None:
    changed = tmp_path / "in"
    changed.mkdir()
    (changed / "0.jsonl").symlink_to(corpus / "0.jsonl")
    (changed / "1.jsonl").write_bytes((corpus / "1.jsonl").read_bytes() + b"\n")
    (changed / "2.jsonl").write_bytes((corpus / "1.jsonl").read_bytes())
    cli("embed", changed, tmp_path / "out", "--model", TINY, "--set", "max_rejected=1", *FP32)
    done = cli("diff", home, tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert (found["rows"], found["common"], found["only"]) == ([199, 299], 99, [100, 200])
    assert found["unlike"] == ["1.jsonl"]
    # Cut otherwise, by another slice.max_rows; the rows are the same, and so are their vectors.
    assert found["agreement"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert "1.jsonl: its versions, chunks or rejected rows differ" in cli("diff", home, tmp_path / "out").stderr


def test_readers_of_the_folder_go_where_the_pointer_says(cli, home: Path) -> None:
    def found() -> list[str]:
        return sorted({json.loads(line)["shard"] for line in cli("ls", home, "--format", "jsonl").stdout.splitlines()})

    def there(name: str) -> list[str]:
        return sorted(path.name for path in (home / name).glob("*.parquet"))

    assert found() == there("v1")
    assert cli("promote", home / "v2").stdout == f"promoted: {home} is now v2 (was v1)\n"
    assert found() == there("v2") != there("v1")
    assert cli("verify", home).stdout.startswith(f"verified: {home / 'v2'}: 199 rows")
    assert cli("search", home, everyday()[0], "--top-k", "1").stdout.splitlines()[1].split()[:2] == ["1.0000", "0-0"]
    cli("promote", home / "v1")
    assert found() == there("v1")


def test_what_cannot_be_promoted_or_taken_over_is_told(told, home: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    assert "not an output of kosbert-ray" in told("promote", tmp_path / "half", code=1)
    assert "no current output" in told("embed", "--into", tmp_path / "v2", code=2)
    assert "is an output itself" in told("embed", "--into", home / "v1" / "v2", code=2)
    assert "leave out OUTPUT" in told("embed", "a", "b", "--into", home / "v3", code=2)
    assert "not an output of kosbert-ray" in told("diff", home / "v1", tmp_path / "half", code=1)
    (tmp_path / "_CURRENT").write_text('{"output": "../elsewhere"}')
    assert "names no output" in told("ls", tmp_path, code=1)
