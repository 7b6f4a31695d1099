"""The handle on an output: what is in it, its rows and samples, and how it says what is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray import Output
from kosbert_ray.errors import InputError, StorageError, UsageError
from kosbert_ray.outputs import tables
from kosbert_ray.outputs.sample import draw

PINNED = Path(__file__).parents[1] / "outputs_0_1_0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PINNED / "whole", tmp_path / "출력"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_a_complete_output_holds_what_its_manifest_lists(folder: Path) -> None:
    expected = names(folder)
    shutil.copy(folder / expected[0], folder / "zz.parquet")
    (folder / "other.parquet").write_bytes(b"of another program")
    output = Output.open(folder)
    assert output.complete
    assert output.shards() == expected
    assert output.totals.rows == output.dataset().count_rows() == output.to_arrow().num_rows == 42


def test_an_incomplete_output_holds_what_is_committed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "_SUCCESS").unlink()
    shutil.rmtree(folder / "_kosbert" / "receipts")  # footers have the same facts
    (folder / "other.parquet").write_bytes(b"of another program")
    gone = names(folder)[0]
    (folder / gone).unlink()
    output = Output.open(folder)
    assert not output.complete and output.manifest is None
    assert output.shards() == [name for name in names(folder) if name != "other.parquet"]
    with caplog.at_level(logging.WARNING, "kosbert_ray"):
        output.warn_if_partial("searched")
    assert "is not complete: only the 34 rows committed so far are searched" in caplog.text
    with pytest.raises(InputError, match="not complete"):
        output.require_complete()


def test_a_missing_shard_is_left_out_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = names(folder)[0]
    (folder / gone).unlink()
    output = Output.open(folder)
    assert output.complete and gone not in output.shards() and output.totals.rows == 34
    with caplog.at_level(logging.WARNING, "kosbert_ray"):
        output.warn_if_partial("searched")
    assert f"{gone}: missing (" in caplog.text
    with pytest.raises(StorageError, match="missing"):
        output.require_complete()


def test_a_damaged_shard_is_named_with_the_remedy(folder: Path) -> None:
    output = Output.open(folder)
    (folder / output.shards()[0]).write_bytes(b"no Parquet")
    for read in (
        lambda: list(output.vectors(output.shards()[0])),
        lambda: output.rows(output.shards()[0], [0]),
        lambda: output.to_arrow(),
    ):
        with pytest.raises(StorageError, match=r"parquet: cannot be read .*; see kosbert-ray verify"):
            read()
    with pytest.raises(StorageError, match="no row 8"):
        output.rows(output.shards()[1], [8])


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an output of kosbert-ray \(it has no _kosbert/job.json\)"):
        Output.open(tmp_path)
    with pytest.raises(UsageError, match="unknown option storage.profil"):
        Output.open(tmp_path, storage={"profil": "team"})


def test_several_columns_of_vectors_can_be_read(tmp_path: Path) -> None:
    output = Output.open(PINNED / "int8")
    shard = output.shards()[0]
    (first, _), (second, _) = next(output.vectors(shard)), next(output.vectors(shard, "embedding_ubinary"))
    assert first.shape == second.shape and set(np.unique(second)) == {-1.0, 1.0}
    with pytest.raises(InputError, match="its columns of vectors are embedding, embedding_ubinary"):
        output.vectors(shard, "embedding_float16")


def test_a_sample_holds_the_rows_it_names(folder: Path) -> None:
    output = Output.open(folder)
    drawn = output.sample(11, seed=3, columns=["id"])
    assert len(drawn) == drawn.table.num_rows == sum(len(rows) for _, rows in drawn.places) == 11
    read = [pq.read_table(folder / shard).take(rows) for shard, rows in drawn.places]
    assert drawn.table["id"].to_pylist() == [value for table in read for value in table["id"].to_pylist()]
    expected = np.concatenate([np.stack(table["embedding"].to_numpy()) for table in read])
    np.testing.assert_array_equal(drawn.vectors, expected)
    again = output.sample(11, seed=3, columns=["id"])
    np.testing.assert_array_equal(drawn.vectors, again.vectors)
    assert len(output.sample(1000)) == 42
    assert len({shard for shard, _ in output.sample(1000, max_shards=2).places}) == 2
    assert output.sample(3, columns=[]).vectors.shape == (3, 256)


@given(
    counts=st.lists(st.integers(0, 40), max_size=12),
    n=st.integers(0, 200),
    seed=st.integers(0, 5),
    max_groups=st.none() | st.integers(1, 12),
)
def test_rows_are_drawn_once_and_from_few_groups(counts: list[int], n: int, seed: int, max_groups: int | None) -> None:
    drawn = draw(counts, n, seed, max_groups)
    assert list(drawn) == sorted(drawn) and (max_groups is None or len(drawn) <= max_groups)
    for group, rows in drawn.items():
        assert rows.tolist() == sorted({*rows.tolist()}) and rows[0] >= 0 and rows[-1] < counts[group]
    total = sum(map(len, drawn.values()))
    assert total == min(n, sum(counts)) if max_groups is None else total <= n


def test_every_row_is_equally_likely() -> None:
    hits = np.zeros(30)
    for seed in range(3000):
        for group, rows in draw([3, 0, 20, 7], 5, seed).items():
            hits[np.array([0, 3, 3, 23])[group] + rows] += 1
    assert abs(hits - 500).max() < 120


def test_a_table_that_does_not_fit_into_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_free_memory", lambda: 30_000)
    output = Output.open(folder)
    with pytest.raises(UsageError, match=r"42 rows take about 0.0 GiB.*scan the rows with Output.dataset\(\)"):
        output.to_arrow()
    with pytest.raises(UsageError, match="Output.dataset"):
        output.to_pandas()
    assert output.to_arrow(limit=5).num_rows == 5
    assert output.to_arrow(columns=["id"])["id"].to_pylist() == pq.read_table(folder, columns=["id"])["id"].to_pylist()
    with pytest.raises(InputError, match="no column 'title'; there are id, text, embedding"):
        output.to_arrow(columns=["title"])


def test_free_memory_is_known_here() -> None:
    free = tables._free_memory()
    assert free is not None and free > 2**20


def test_the_record_is_what_job_json_says(folder: Path) -> None:
    said = json.loads((folder / "_kosbert" / "job.json").read_text("utf-8"))
    record = Output.open(folder, encoder={"device": "cpu"}).record
    assert (record.digest, record.created, record.version) == (said["sha256"], said["created"], "0.1.0")
    assert record.kept == ("id: int64", "text: string") and not record.normalized
    assert Output.open(folder, encoder={"precision": "bf16"}).job.encoder.precision == "bf16"
    assert Output.open(PINNED / "int8").job.encoder.precision == "int8"
