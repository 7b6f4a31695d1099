"""A later run of an output reads the footers of new and changed Parquet files only."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, shards

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.corpus import footers
from kosbert_ray.corpus.formats import parquet
from kosbert_ray.run.lifecycle import embed, preview


def write(folder: Path, name: str, texts: list[str], day: str = "월") -> None:
    path = folder / f"요일={day}" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=2)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The files whose footers were read for the plan."""
    found: Counter[str] = Counter()
    read = parquet._footer

    def counted(storage, file, tail):
        found[Path(file.name).stem] += 1
        return read(storage, file, tail)

    monkeypatch.setattr(parquet, "_footer", counted)
    monkeypatch.setattr(footers, "MIN_FILES", 5)
    return found


def job(folder: Path, *settings: str) -> JobConfig:
    options = [f"input.path={folder / 'in'}", f"output.path={folder / 'out'}", f"model.name={TINY}", "executor=local"]
    return load_config(None, [*options, "encoder.engine=torch", "encoder.precision=fp32", *settings])


def test_footers_of_files_that_were_inspected_are_not_read_again(looked: Counter[str], tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "in", f"{number}", ["비가 온다", "눈이 온다", f"{number}번째"])
    config = job(tmp_path, "input.keep=[id]")
    assert embed(config).totals.rows == 24 and looked == {f"{number}": 1 for number in range(8)}
    before = shards(tmp_path / "out")
    (record,) = (tmp_path / "out" / "_kosbert" / "footers").iterdir()

    looked.clear()
    assert embed(config).totals.rows == 24 and looked == {"0": 1}
    # An interrupted run, a new file, a changed one and one that was only touched.
    looked.clear()
    (tmp_path / "out" / "_SUCCESS").unlink()
    lost = min((tmp_path / "out").glob("7.*.parquet"))
    lost.unlink()
    write(tmp_path / "in", "새 파일", ["처음"])
    write(tmp_path / "in", "3", ["바뀐 글"] * 4)
    os.utime(tmp_path / "in" / "요일=월" / "5.parquet", (0, 0))
    assert embed(config).totals.rows == 26
    assert looked == {"0": 1, "3": 1, "5": 1, "새 파일": 1}
    after = shards(tmp_path / "out")
    assert after[lost.name] == before[lost.name]
    # A record that was lost or broken costs the reading.
    table = pq.read_table(record)
    nulls = pa.array([[None, None]] * len(table), pa.list_(pa.int64()))
    pq.write_table(table.set_column(3, "rows", nulls), record)
    looked.clear()
    assert embed(config).totals.rows == 26 and len(looked) == 9
    looked.clear()
    record.write_bytes(b"broken")
    assert embed(config).totals.rows == 26 and len(looked) == 9


def test_the_file_that_is_looked_at_may_be_broken(looked: Counter[str], tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "in", f"{number}", ["비가 온다"])
    embed(job(tmp_path))
    looked.clear()
    (tmp_path / "in" / "요일=월" / "0.parquet").write_bytes(b"PAR1 cut")
    found = preview(job(tmp_path))
    assert len(looked) == 8 and len(found.failed) == 1


def test_all_are_read_where_a_kept_column_may_come_from_the_paths(looked: Counter[str], tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "in", f"{number}", ["비가 온다"])
    config = job(tmp_path, "input.keep=[요일]")
    embed(config)
    looked.clear()
    embed(config)
    assert len(looked) == 8
