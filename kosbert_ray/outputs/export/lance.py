"""Exports a Lance dataset. Each export writes a new version of the dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import pyarrow as pa

from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.outputs.export.base import Export, Source
from kosbert_ray.shards.vectors import open_shard

BATCH_ROWS = 8192

log = logging.getLogger(__name__)


def export(source: Source, address: str) -> Export:
    """Writes all rows with their kept columns and all chosen columns of vectors."""
    try:
        import lance
    except ImportError as error:
        raise UsageError("--format lance: not installed; pip install 'kosbert-ray[lance]'") from error
    output = source.output
    if not output.shards():
        raise InputError(f"{output.storage.url()}: there are no rows in it")
    options = output.storage.options.object_store_options() if "://" in address else None
    log.info(f"writing a new version of {address}")
    batches = _batches(source)
    first = next(batches)
    try:
        reader = pa.RecordBatchReader.from_batches(first.schema, chain((first,), batches))
        written = lance.write_dataset(reader, address, mode="overwrite", storage_options=options)
        return Export(address, int(written.count_rows()))
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{address}: Lance cannot write there ({first_line(error)})") from error


def _batches(source: Source) -> Iterator[pa.RecordBatch]:
    """Yields all rows, with vectors as ``fixed_size_list``, which is what Lance indexes."""
    output = source.output
    fields = {one.column: replace(one, list_type="fixed_size_list", nullable=True).field() for one in source.formats}
    for shard in output.shards():
        with open_shard(output.storage, shard) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=[*output.columns, *fields]):
                schema = pa.schema([fields.get(field.name, field) for field in batch.schema])
                columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
                yield pa.record_batch(columns, schema)
