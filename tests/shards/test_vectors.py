"""Reading shards back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosbert_ray.errors import StorageError
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import read_rows, read_vectors
from kosbert_ray.storage import Storage

VECTORS = np.random.default_rng(0).normal(size=(30, 9)).astype(np.float32)


@pytest.mark.parametrize("list_type", ["list", "fixed_size_list"])
@pytest.mark.parametrize("dtype", ["float32", "ubinary"])
def test_rows_without_a_vector_are_left_out_and_counted(tmp_path: Path, list_type: str, dtype: str) -> None:
    format = EmbeddingFormat(9, list_type=list_type, dtype=dtype, nullable=True)
    valid = np.ones(40, bool)
    valid[::4] = False
    table = pa.table({"embedding": format.array(VECTORS, pa.array(valid))})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=7)
    vectors, rows = zip(*read_vectors(Storage(str(tmp_path)), "0.parquet", format), strict=True)
    assert np.concatenate(rows).tolist() == np.flatnonzero(valid).tolist()
    expected = VECTORS if dtype == "float32" else np.sign(VECTORS)
    np.testing.assert_array_equal(np.concatenate(vectors), expected)


def test_columns_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(30)}), tmp_path / "0.parquet", row_group_size=7)
    found = read_rows(Storage(str(tmp_path)), "0.parquet", [29, 3, 8, 3], ["id"])
    assert found["id"].to_pylist() == [29, 3, 8, 3]


@pytest.mark.parametrize("content", [b"no Parquet", None])
def test_what_is_no_shard_is_named(tmp_path: Path, content: bytes | None) -> None:
    pq.write_table(pa.table({"id": range(3)}), tmp_path / "0.parquet")
    if content:
        (tmp_path / "0.parquet").write_bytes(content)
    with pytest.raises(StorageError, match=r"0\.parquet: cannot be read \(.*\); see kosbert-ray verify"):
        list(read_vectors(Storage(str(tmp_path)), "0.parquet", EmbeddingFormat(9)))
