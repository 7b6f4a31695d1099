"""Estimates how many bytes a row takes in a shard, by writing a few as a run would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.planning.sparse_sample import SparseSample
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import parquet_bytes, shard_bytes
from kosbert_ray.shards.vector_types import ranges_of
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import MULTI_VECTOR, SPARSE
from kosbert_ray.vectors.token_vectors import TokenVectors

VECTORS = 512
VECTOR_CHUNKS = 8
VALUES = 2**22  # of token vectors
# A receipt of typical length, for a shard's footer.
TYPICAL_RECEIPT = Receipt(
    shard="part-00000.00000-00000.01234567.parquet",
    file="part-00000.parquet",
    version="1795607435365492950",
    fragment=64 * "0",
    fragment_index=0,
    slice_index=0,
    last=False,
    rows=10_000,
    rejected=0,
    distinct=10_000,
    tokens=200_000,
    encoded_tokens=200_000,
    truncated=0,
    dropped_tokens=0,
    input_bytes=1_000_000,
    output_bytes=0,
    embedding_xxh128=32 * "0",
    precision="bf16",
    attention="packed",
    device="cuda",
)


@dataclass(frozen=True)
class RowBytes:
    """Bytes of an output, by what takes them.

    Attributes:
        vectors: bytes of a row's vectors, by column.
        kept: bytes of a row's other columns.
        shard: bytes of a shard apart from its rows.
    """

    vectors: Mapping[str, float]
    kept: float
    shard: float

    @property
    def row(self) -> float:
        """Bytes of a row."""
        return sum(self.vectors.values()) + self.kept


def typical_vectors(item: VectorFormat, spec: ModelSpec, tokens: float, sparse: SparseSample | None) -> Any:
    """Returns vectors that compress as a model's do, in the form of their kind.

    Measured on dense vectors of kosbert-mini: 0.4 % less in float32, 1.3 % less in float16, 0.3 % more in int8.

    Args:
        item: how they are stored.
        spec: the model.
        tokens: of a text, after pooling.
        sparse: a sample of the sparse vectors; needed for these only.
    """
    if item.kind == SPARSE:
        assert sparse is not None
        return sparse.vectors
    random = np.random.default_rng(0)
    if item.kind == MULTI_VECTOR:
        length = max(1, round(tokens))
        texts = max(1, min(VECTORS, VALUES // (length * item.dimension)))
        vectors = unit(random.standard_normal((texts * length, item.dimension), dtype=np.float32))
        return TokenVectors.of_lengths(vectors.astype(np.float16), np.full(texts, length))
    vectors = random.standard_normal((VECTORS, spec.dimension), dtype=np.float32)
    return unit(vectors) if spec.normalized else vectors


def output_bytes(
    formats: Sequence[VectorFormat],
    spec: ModelSpec,
    tokens: float,
    kept: list[pa.Table],
    slice_rows: int,
    sparse: SparseSample | None,
) -> RowBytes:
    """Measures the bytes of an output by writing typical rows.

    Args:
        formats: how vectors are stored.
        spec: the model.
        tokens: of a text, after pooling.
        kept: the kept columns of the sampled slices.
        slice_rows: rows of a typical slice.
        sparse: a sample of the sparse vectors; needed if the output has any.
    """
    sizes: dict[str, float] = {}
    few, arrays, complete = kept[0].slice(0, 1), list[pa.Array](), list[VectorFormat]()
    for item in formats:
        vectors = typical_vectors(item, spec, tokens, sparse)
        if isinstance(item, EmbeddingFormat):
            item = item.with_ranges(ranges_of(vectors))
        complete.append(item)
        array = item.array(vectors)
        count = max(1, min(slice_rows, len(array)))
        chunks = [array.slice(start, count) for start in range(0, len(array) - count + 1, count)][:VECTOR_CHUNKS]
        schema = pa.schema([item.field()])
        written = (parquet_bytes(pa.table([chunk], schema=schema), [item]) for chunk in chunks)
        sizes[item.column] = sum(map(_column_bytes, written)) / (count * len(chunks))
        arrays.append(array.slice(0, few.num_rows))
    columns = {name: few[name].combine_chunks() for name in few.column_names}
    said = TYPICAL_RECEIPT.footer() | {"fingerprint": 64 * "0"}
    shard = shard_bytes(columns, arrays, complete, said)
    return RowBytes(sizes, kept_bytes(formats, kept), float(shard.size - _column_bytes(shard)))


def kept_bytes(formats: Sequence[VectorFormat], kept: list[pa.Table]) -> float:
    """Measures the bytes that a row's kept columns take in a shard.

    Args:
        formats: how vectors are stored.
        kept: the columns of the sampled slices.
    """
    if not kept or not kept[0].num_columns:
        return 0.0
    sizes = [_column_bytes(parquet_bytes(table, formats)) for table in kept]
    return sum(sizes) / max(1, sum(int(table.num_rows) for table in kept))


def _column_bytes(content: pa.Buffer) -> int:
    """Bytes of the column chunks in a Parquet file."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return sum(int(group.column(number).total_compressed_size) for group in groups for number in range(group.num_columns))
