"""Number types: the values sentence-transformers computes, and one table entry per type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util import quantize_embeddings

from kosbert_ray.outputs.shard_check import Promise, check_shard
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import checksum, write_shard
from kosbert_ray.shards.vector_types import CODECS, Codec, VectorType, ranges_of
from kosbert_ray.shards.vectors import read_vectors
from kosbert_ray.storage import Storage
from kosbert_ray.vectors.arithmetic import truncate, unit

VECTORS = np.random.default_rng(0).normal(size=(200, 90)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "int8", "ubinary"])
def test_types_are_those_of_sentence_transformers(dtype: str) -> None:
    theirs = quantize_embeddings(VECTORS[100:], precision=dtype, calibration_embeddings=VECTORS[:100])
    ours = CODECS[dtype].encode(VECTORS[100:], ranges_of(VECTORS[:100]))
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_a_constant_dimension_does_no_harm() -> None:
    vectors = VECTORS.copy()
    vectors[:, 3] = 0.5
    theirs = quantize_embeddings(vectors, precision="int8", ranges=np.array(ranges_of(vectors), np.float32))
    np.testing.assert_array_equal(CODECS["int8"].encode(vectors, ranges_of(vectors)), theirs)


def test_truncated_vectors_have_length_1_only_if_the_model_promises_it() -> None:
    assert np.allclose(np.linalg.norm(truncate(VECTORS, 32, True), axis=1), 1)
    np.testing.assert_array_equal(truncate(VECTORS, 32, False), VECTORS[:, :32])


def test_zeros_stay_zeros_and_the_precision_is_kept() -> None:
    vectors = np.array([[0, 0], [3, 4]], np.float32)
    assert unit(vectors).tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]
    assert unit(vectors).dtype == np.float32 and unit(vectors.astype(np.float64)).dtype == np.float64


def test_int8_decodes_within_half_a_step_and_ubinary_to_signs() -> None:
    ranges = ranges_of(VECTORS)
    int8, ubinary, float32 = (CODECS[name] for name in ("int8", "ubinary", "float32"))
    decoded = int8.decode(int8.encode(VECTORS, ranges), 90, ranges)
    steps = (np.array(ranges[1]) - np.array(ranges[0])) / 255
    assert (np.abs(decoded - VECTORS) <= steps * 0.501).all()
    signs = ubinary.decode(ubinary.encode(VECTORS, ()), 90, ())
    np.testing.assert_array_equal(signs, np.where(VECTORS > 0, 1, -1))
    assert signs.dtype == decoded.dtype == np.float32
    assert np.shares_memory(float32.decode(float32.encode(VECTORS, ()), 90, ()), VECTORS)


def test_int8_without_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match="int8 needs ranges"):
        CODECS["int8"].encode(VECTORS, ())


@pytest.mark.parametrize("dtype", CODECS)
def test_an_entry_is_consistent(dtype: str) -> None:
    codec = CODECS[dtype]
    ranges = ranges_of(VECTORS) if codec.needs_ranges else ()
    stored = codec.encode(VECTORS, ranges)
    assert stored.shape == (200, codec.width(90))
    assert pa.from_numpy_dtype(stored.dtype) == pa.type_for_alias(codec.arrow)
    assert codec.unpack(stored, 90).shape == codec.decode(stored, 90, ranges).shape == (200, 90)
    again = codec.decode(stored, 90, ranges)
    assert ((VECTORS * again).sum(1) / np.linalg.norm(VECTORS, axis=1) / np.linalg.norm(again, axis=1)).min() > 0.7


def test_options_accept_the_names_in_the_table() -> None:
    assert get_args(VectorType) == tuple(CODECS)


def test_the_table_loads_neither_numpy_nor_arrow() -> None:
    code = "import sys, kosbert_ray.shards.vector_types; print({'numpy', 'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_another_type_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A type known to the table only is written, read and verified like the others."""
    wide = Codec(
        arrow="float64",
        encode=lambda vectors, _ranges: vectors.astype(np.float64),
        decode=lambda values, _dimension, _ranges: values.astype(np.float32),
        agreement=1.0,
        norm_tolerance=1e-3,
        byte_stream_split=True,
    )
    monkeypatch.setitem(CODECS, "float64", wide)
    said = {"dimension": 90, "column": "embedding", "list_type": "list", "on_bad_row": "reject", "ranges": []}
    formats = EmbeddingFormat.all_of(said | {"dtype": ["float64", "ubinary"]})
    assert [each.column for each in formats] == ["embedding", "embedding_ubinary"]
    vectors = unit(VECTORS)

    def shard(name: str, rows: np.ndarray) -> tuple[str, ...]:
        """Writes a shard and returns what verify says of it."""
        arrays = [each.array(rows) for each in formats]
        numbers = {"fragment_index": 0, "slice_index": 0, "rows": len(rows), "rejected": 0, "distinct": len(rows)}
        zeros = dict.fromkeys(("tokens", "encoded_tokens", "truncated", "dropped_tokens", "input_bytes"), 0)
        how = {"precision": "fp32", "attention": "packed", "device": "cpu", "last": True}
        names = {"shard": name, "file": "a", "version": "1", "fragment": "f"}
        footer = names | numbers | zeros | how | {"embedding_xxh128": checksum(*arrays), "fingerprint": "fp"}
        size = write_shard(storage, name, {}, arrays, formats, footer)
        promise = Promise("fp", formats, (), normalized=True)
        return check_shard(storage, name, promise, Receipt.from_footer(footer, size)).problems

    storage = Storage(str(tmp_path))
    assert shard("0.parquet", vectors) == ()
    column = pq.read_metadata(tmp_path / "0.parquet").row_group(0).column(0)
    assert (column.physical_type, column.has_dictionary_page) == ("DOUBLE", False)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    for each, expected in zip(formats, (vectors, np.where(vectors > 0, 1, -1)), strict=True):
        ((found, rows),) = read_vectors(storage, "0.parquet", each)
        np.testing.assert_array_equal(found, expected)
        assert rows.tolist() == list(range(200))
    assert "200 vectors do not have length 1" in shard("1.parquet", vectors * 1.1)[0]
