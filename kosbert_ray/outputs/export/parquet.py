"""Exports few large Parquet files, where an output has a shard for each of many small input files.

Rows keep their order and their stored values. A file takes two to three times its size of memory while it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError
from kosbert_ray.outputs.export import sidecar
from kosbert_ray.outputs.export.base import Export, Source
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import VECTORS_KEY, checksum, described, parquet_bytes
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage

SIDECAR = "_export.json"  # a name that readers of the folder skip
SHARDS_KEY = b"kosbert_ray.shards"  # in a file's footer: the shards that it was made of
SHARD_SIZE = 256 * 2**20


def export(source: Source, address: str) -> Export:
    """Writes all columns; files of an earlier export of the same output stay if they hold the same shards."""
    output = source.output
    target = Storage(address, output.storage.options)
    groups = list(_groups([item for item in output.receipts if item.shard], source.shard_size or SHARD_SIZE))
    names = [f"part-{number:05d}.parquet" for number in range(len(groups))]
    present = {entry.name for entry in target.list()} - {SIDECAR}
    content = sidecar.described(output) | {"columns": [item.column for item in source.formats]}
    sidecar.require_same_export(target, SIDECAR, content, present - {*names})
    sidecar.write(target, SIDECAR, content, complete=False)
    kept = 0
    for name, group in zip(names, groups, strict=True):
        if name in present and _made_of(target, name) == [item.shard for item in group]:
            kept += 1
        else:
            _write_file(source, target, name, group)
    target.delete(sorted(present - {*names}))
    sidecar.write(target, SIDECAR, content, complete=True)
    nullable = output.nullable
    return Export(target.address, sum(item.shard_rows(nullable) for group in groups for item in group), kept, len(names))


def _groups(receipts: Sequence[Receipt], size: int) -> Iterator[list[Receipt]]:
    """Consecutive shards that have at most ``size`` bytes together; a larger shard is a group of its own."""
    held: list[Receipt] = []
    stored = 0
    for receipt in receipts:
        if held and stored + receipt.output_bytes > size:
            yield held
            held, stored = [], 0
        held.append(receipt)
        stored += receipt.output_bytes
    if held:
        yield held


def _made_of(target: Storage, name: str) -> list[str]:
    """The shards that a file was made of; none if it cannot be read."""
    try:
        with target.open(name) as file:
            found: list[str] = json.loads((pq.read_metadata(file).metadata or {})[SHARDS_KEY])
            return found
    except (pa.ArrowException, OSError, StorageError, KeyError, ValueError):
        return []


def _write_file(source: Source, target: Storage, name: str, group: Sequence[Receipt]) -> None:
    """Writes the rows of some shards to one file, once what is to be written reads as they do."""
    columns = [*source.output.columns, *(item.column for item in source.formats)]
    rows = pa.concat_tables(_read(source.output, receipt).select(columns) for receipt in group).combine_chunks()
    footer = {
        SHARDS_KEY: json.dumps([receipt.shard for receipt in group]).encode(),
        VECTORS_KEY: described(source.formats),
    }
    content = parquet_bytes(rows.replace_schema_metadata(footer), source.formats)
    _require_same(rows, pq.ParquetFile(pa.BufferReader(content)), target.url(name))
    target.write_atomic(name, content)


def _read(output: Output, receipt: Receipt) -> pa.Table:
    """Reads a shard; raises StorageError if its vectors are not those that were written."""
    with open_shard(output.storage, receipt.shard) as file:
        table = file.read().replace_schema_metadata(None)
    if checksum(*(table[item.column].combine_chunks() for item in output.formats)) != receipt.embedding_xxh128:
        raise StorageError(f"{output.storage.url(receipt.shard)}: not as it was written; see kosbert-ray verify")
    return table


def _require_same(rows: pa.Table, file: pq.ParquetFile, where: str) -> None:
    """Raises StorageError if a file has other rows."""
    start = 0
    for number in range(file.num_row_groups):
        found = file.read_row_group(number).replace_schema_metadata(None)
        expected = rows.slice(start, len(found))
        # NaN, which may be in a kept column, is equal to nothing but in its spelling.
        if not found.equals(expected) and str(found.to_pylist()) != str(expected.to_pylist()):
            start = -1
            break
        start += len(found)
    if start != len(rows):
        raise StorageError(f"{where}: what was to be written is not what the shards hold; run the export again")
