"""A shard is plain Parquet, and equal content gives equal bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.shard import REJECTED_SCHEMA, read_metadata, write_rejected, write_shard
from kosbert_ray.shards.vector_types import ranges_of
from kosbert_ray.storage import Storage

VECTORS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
KEEP = {"id": pa.array(range(50)), "title": pa.array([f"제목 {number % 3}" for number in range(50)])}


def write(folder: Path, name: str = "a.parquet", **more) -> Path:
    layout = EmbeddingFormat(8, **more)
    footer = {"fingerprint": "fp", "b": 1, "a": "가"}
    write_shard(Storage(str(folder)), name, KEEP, [layout.array(VECTORS)], [layout], footer)
    return folder / name


@pytest.mark.parametrize("list_type", ["list", "fixed_size_list"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_and_kept_columns_are_read_back(tmp_path: Path, list_type: str, dtype: str) -> None:
    table = pq.read_table(write(tmp_path, list_type=list_type, dtype=dtype))
    assert table.column_names == ["id", "title", "embedding"]
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type) == (list_type == "fixed_size_list")
    assert str(table.schema.field("embedding").type.value_type) == {"float32": "float", "float16": "halffloat"}[dtype]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype), VECTORS.astype(dtype))
    assert table["id"].to_pylist() == list(range(50))


def test_vectors_are_byte_stream_split_without_a_dictionary(tmp_path: Path) -> None:
    column = pq.read_metadata(write(tmp_path)).row_group(0).column(2)
    assert column.path_in_schema == "embedding.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page
    assert column.compression == "ZSTD"


def test_byte_types_take_one_byte_per_value_and_the_footer_describes_them(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(20_000, 32)).astype(np.float32)
    for dtype, most in (("int8", 32 * 20_000 * 1.05), ("ubinary", 4 * 20_000 * 1.1)):
        layout = EmbeddingFormat(32, dtype=dtype, ranges=ranges_of(vectors) if dtype == "int8" else ())
        write_shard(Storage(str(tmp_path)), dtype, {}, [layout.array(vectors)], [layout], {})
        assert (tmp_path / dtype).stat().st_size < most
        described = json.loads(pq.read_metadata(tmp_path / dtype).metadata[b"kosbert_ray.vectors"])["embedding"]
        assert described["dtype"] == dtype and described["dimension"] == 32
        assert np.array_equal(described.get("ranges", []), layout.ranges)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path, "a.parquet").read_bytes() == write(tmp_path, "b.parquet").read_bytes()


def test_the_footer_identifies_the_job(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write(tmp_path)
    assert read_metadata(storage, "a.parquet") == {"fingerprint": "fp", "b": 1, "a": "가"}
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert read_metadata(storage, "foreign.parquet") is None
    assert read_metadata(storage, "broken.parquet") is None


def test_a_dataset_reader_sees_shards_only(tmp_path: Path) -> None:
    write(tmp_path)
    storage = Storage(str(tmp_path))
    rejected = {"file": "a", "row": 1, "byte_offset": None, "reason": "null text", "text": None, "slice_row": 1}
    write_rejected(storage, "a.parquet", pa.Table.from_pylist([rejected], schema=REJECTED_SCHEMA))
    storage.write_atomic("_SUCCESS", json.dumps({}).encode())
    assert ds.dataset(tmp_path, format="parquet").count_rows() == 50
    assert pq.read_table(tmp_path / "_kosbert" / "rejected" / "a.parquet").to_pylist()[0]["reason"] == "null text"


def test_a_shard_without_rows_is_valid(tmp_path: Path) -> None:
    keep = {"id": pa.array([], pa.int64())}
    write_shard(
        Storage(str(tmp_path)), "a.parquet", keep, [EmbeddingFormat(8).array(VECTORS[:0])], [EmbeddingFormat(8)], {}
    )
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
