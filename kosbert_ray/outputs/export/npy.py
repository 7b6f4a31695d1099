"""Exports NumPy files with the kept columns beside them.

The layout is that of clip-retrieval and autofaiss: ``text_emb/NAME.npy`` and, row by row, ``metadata/NAME.parquet``.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.outputs.export import sidecar
from kosbert_ray.outputs.export.base import Export, Source
from kosbert_ray.outputs.export.by_shard import export_shards
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

VECTORS, METADATA = "text_emb", "metadata"


def export(source: Source, address: str) -> Export:
    """Writes the first column of dense vectors; files of an earlier export of the same output stay."""
    output = source.output
    vector_format = output.vector_format(source.formats[0].column if len(source.formats) == 1 else None)
    target = Storage(address, output.storage.options)
    content = sidecar.described(output) | json.loads(json.dumps(vector_format.described()))
    present = [entry.name for folder in (VECTORS, METADATA) for entry in target.list(folder)]

    def write(shard: str) -> None:
        vectors, metadata = _files_of(shard)
        values, kept = _read(output, shard, vector_format)
        target.write_atomic(vectors, _npy(values))
        target.write_atomic(metadata, to_parquet(kept))

    return export_shards(output, target, content, present, {shard: _files_of(shard) for shard in output.shards()}, write)


def _files_of(shard: str) -> tuple[str, str]:
    stem = shard.removesuffix(".parquet")
    return f"{VECTORS}/{stem}.npy", f"{METADATA}/{stem}.parquet"


def _read(output: Output, shard: str, vector_format: EmbeddingFormat) -> tuple[npt.NDArray[Any], pa.Table]:
    """Reads a shard's stored values ``[n, width]`` and its kept columns, without the rows that have no vector."""
    column = vector_format.column
    with open_shard(output.storage, shard) as file:
        table = file.read(columns=[*output.columns, column])
    rows = np.flatnonzero(table[column].is_valid().to_numpy())
    table = table.take(pa.array(rows))
    values = vector_format.stored(table[column].combine_chunks())
    kept = table.drop_columns([column]).replace_schema_metadata(None)
    places = {"shard": pa.array([shard] * len(rows), pa.string()), "row": pa.array(rows, pa.int64())}
    for name, place in places.items():
        if name not in kept.column_names:
            kept = kept.append_column(name, place)
    return values, kept


def _npy(values: npt.NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    return sink.getvalue()
