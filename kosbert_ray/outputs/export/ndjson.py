"""Exports files for the bulk API of OpenSearch and Elasticsearch: newline-delimited JSON, one file for each shard.

A row takes two lines: the action, which has the row's id, and the document, which has the kept columns and the vectors. The
index is named in the request, and a row that is sent again replaces itself.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.errors import ModelError, StorageError
from kosbert_ray.outputs.export import sidecar
from kosbert_ray.outputs.export.base import Export, Source
from kosbert_ray.outputs.export.by_shard import export_shards
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.row_ids import RowIds
from kosbert_ray.shards.formats.base import Int64, VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind

SUFFIX = ".ndjson"
BLOCK_ROWS = 256  # whose numbers are spelled at once
MIN_WEIGHT = float(np.finfo(np.float32).smallest_normal)  # that Lucene's FeatureField takes

log = logging.getLogger(__name__)


def export(source: Source, address: str) -> Export:
    """Writes all columns, or that of ``--column``; files of an earlier export of the same output stay."""
    output = source.output
    target = Storage(address, output.storage.options)
    columns = [item.column for item in source.formats]
    content = sidecar.described(output) | {"format": "ndjson", "columns": columns}
    keys = pa.array([], pa.string())
    if any(item.kind == SPARSE for item in source.formats):
        keys, content["sparse_keys"] = _sparse_keys(source)
    present = [entry.name for entry in target.list() if entry.name.endswith(SUFFIX)]
    shards = [receipt.shard for receipt in output.receipts if receipt.shard and receipt.rows]
    files = {shard: (shard.removesuffix(".parquet") + SUFFIX,) for shard in shards}
    ids = RowIds(output)

    def write(shard: str) -> None:
        target.write_atomic(files[shard][0], _lines(output, source.formats, shard, ids, keys))

    done = export_shards(output, target, content, present, files, write)
    return replace(done, files=len(files))


# -- keys of sparse vectors ---------------------------------------------------------------------------------------------


def _sparse_keys(source: Source) -> tuple[pa.Array, str]:
    """The key of each index of the sparse vectors as JSON, and what they are: "tokens" or "ids"."""
    dimension = source.output.kind_format(SPARSE).dimension
    ids = [str(number) for number in range(dimension)]
    keys = ids if source.token_ids else _tokens(source.output, ids)
    return pa.array([json.dumps(key, ensure_ascii=False) for key in keys]), "ids" if keys is ids else "tokens"


def _tokens(output: Output, ids: list[str]) -> list[str]:
    """The token of each index; the ids, with a notice, if the model cannot be read or two have the same token."""
    from kosbert_ray.encoder.tokenizer import Tokenizer

    column = output.kind_format(SPARSE).column
    try:
        tokens = Tokenizer.load(output.model()).tokens
    except (ModelError, StorageError) as error:
        log.warning(f"keys of {column!r} are token ids, not tokens: {error}")
        return ids
    keys = [tokens.get(number) or key for number, key in enumerate(ids)]
    if len({*keys}) < len(keys):
        log.warning(f"keys of {column!r} are token ids, not tokens: some tokens of the model's vocabulary are the same")
        return ids
    dotted = sum("." in key for key in keys)
    if dotted:
        log.warning(
            f"{plural(dotted, 'token', 'have')} a dot, which OpenSearch takes as a key, and Elasticsearch refuses in "
            "rank_features fields and before 8.16 in sparse_vector fields; for these add --token-ids"
        )
    return keys


# -- documents ----------------------------------------------------------------------------------------------------------


def _lines(output: Output, formats: Sequence[VectorFormat], shard: str, row_ids: RowIds, keys: pa.Array) -> memoryview:
    """The file of a shard. Rows without a vector are left out."""
    with open_shard(output.storage, shard) as file:
        table = file.read(columns=[*output.columns, *(item.column for item in formats)])
    valid = table[formats[0].column].is_valid().combine_chunks()  # a row has a vector of each kind, or of none
    ids = row_ids.of(shard, table, valid)
    table = table.filter(valid)
    sink = io.BytesIO()
    names = [json.dumps(item.column, ensure_ascii=False) for item in formats]
    for start in range(0, len(table), BLOCK_ROWS):
        block = table.slice(start, BLOCK_ROWS)
        kept = block.select(list(output.columns)).to_pylist()
        vectors = [ENCODE[item.kind](item, block[item.column].combine_chunks(), keys).to_pylist() for item in formats]
        for row_id, row, *texts in zip(ids[start : start + BLOCK_ROWS], kept, *vectors, strict=True):
            # A text without token vectors has no field: rank_vectors takes no empty array.
            fields = [f"{name}:{text}" for name, text in zip(names, texts, strict=True) if text != "[]"]
            document = ",".join(part for part in (_json(row)[1:-1], *fields) if part)
            sink.write(f'{{"index":{{"_id":"{row_id}"}}}}\n{{{document}}}\n'.encode())
    return sink.getbuffer()


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_spelled, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, separators=(",", ":"), default=_spelled)


def _spelled(value: Any) -> str:
    """A value that JSON has no type for, as fields of OpenSearch take it: dates in ISO 8601, bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _finite(value: Any) -> Any:
    """The same value with null for NaN and Inf, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- vectors ------------------------------------------------------------------------------------------------------------


def _dense(item: VectorFormat, vectors: pa.Array, _keys: pa.Array) -> pa.Array:
    """Numbers of bits are bytes from -128 to 127; those of int8 codes are decoded, for they have a range each."""
    assert isinstance(item, EmbeddingFormat)
    bits = item.dtype == "ubinary"
    values = item.stored(vectors).view(np.int8) if bits else item.matrix(vectors)[0]
    return _joined(_numbers(values), np.full(len(values), values.shape[1]), "[", "]")


def _sparse(item: VectorFormat, vectors: pa.Array, keys: pa.Array) -> pa.Array:
    found = item.matrix(vectors)[0].strongest(None, MIN_WEIGHT)
    pairs = pc.binary_join_element_wise(keys.take(pa.array(found.indices)), _numbers(found.values), ":")
    return _joined(pairs, found.counts, "{", "}")


def _token_vectors(item: VectorFormat, vectors: pa.Array, _keys: pa.Array) -> pa.Array:
    found = item.matrix(vectors)[0]
    values = found.values.astype(np.float32, copy=False)
    tokens = _joined(_numbers(values), np.full(len(values), found.dimension), "[", "]")
    return _joined(tokens, found.counts, "[", "]")


# JSON of each vector, from its format, the stored vectors and the keys of sparse ones.
ENCODE: dict[Kind, Callable[[VectorFormat, pa.Array, pa.Array], pa.Array]] = {
    DENSE: _dense,
    SPARSE: _sparse,
    MULTI_VECTOR: _token_vectors,
}


def _numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Spells numbers with as few digits as read back as the same float32."""
    return pa.array(np.ascontiguousarray(values).reshape(-1)).cast(pa.string())


def _joined(parts: pa.Array, counts: Int64, before: str, after: str) -> pa.Array:
    """Joins the first ``counts[0]`` parts to one text, and so on."""
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), parts)
    return pc.binary_join_element_wise(before, pc.binary_join(lists, ","), after, "")
