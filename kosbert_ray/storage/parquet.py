"""Parquet files in memory, to be written by :meth:`Storage.write_atomic`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table, compression: str = "zstd", **options: Any) -> pa.Buffer:
    """Serializes a table as a Parquet file.

    Args:
        table: the rows.
        compression: the codec.
        options: other arguments of :func:`pyarrow.parquet.write_table`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, **options)
    return sink.getvalue()
