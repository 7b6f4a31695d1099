"""An output as other tools read it: NumPy files with their columns beside them, or one Lance dataset.

The NumPy layout is that of clip-retrieval and autofaiss: ``text_emb/NAME.npy`` and, row for row, ``metadata/NAME.parquet``.
Parquet stays the output's own form; what is exported can always be made again from it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.job import job_of_output, open_output, reader_threads
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.storage import Storage

Kind = Literal["npy", "lance"]
VECTORS, METADATA = "text_emb", "metadata"
SIDECAR = "export.json"  # written last
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Export:
    """What was written: where, rows, and files that were there already."""

    address: str
    rows: int
    kept: int


@dataclass(frozen=True)
class _Source:
    storage: Storage
    names: tuple[str, ...]
    columns: tuple[str, ...]
    formats: tuple[EmbeddingFormat, ...]
    model: str
    sha256: str


def export(config: JobConfig, address: str, kind: Kind, column: str | None, say: Callable[[str], None]) -> Export:
    """Writes a complete output in another form; run again, it does what is new.

    Args:
        config: ``output.path`` says which; ``storage`` applies to both addresses.
        address: where to: a folder or an object store's URL.
        kind: "npy" or "lance".
        column: which of the output's columns of vectors; None: the first (of Lance: all).
        say: takes a line for the user.

    Raises:
        InputError: there is no complete output, or no such column in it.
        UsageError: the library for ``kind`` is not installed.
        StorageError: a store refuses.
    """
    storage = open_output(config)
    ledger = Ledger(storage)
    job, said = job_of_output(config, ledger)
    manifest = ledger.complete_manifest()
    formats = EmbeddingFormat.all_of(said["fingerprint"])
    if column:
        formats = tuple(format for format in formats if format.column == column)
        if not formats:
            raise InputError(f"--column {column}: its columns of vectors are {', '.join(job.output.columns())}")
    names = tuple(sorted(receipt.shard for receipt in manifest if receipt.shard))
    source = _Source(storage, names, job.columns(), formats, job.model.name, str(said["sha256"]))
    if f"{storage.address}/".startswith(f"{Storage(address, storage.options).address}/"):
        raise UsageError(f"{address}: holds the output itself; choose another place")
    return _npy(source, Storage(address, storage.options)) if kind == "npy" else _lance(source, address, say)


# -- NumPy ---------------------------------------------------------------------------------------------------------


def _npy(source: _Source, target: Storage) -> Export:
    source = replace(source, formats=source.formats[:1])
    sidecar = _sidecar(source)
    before = _json(target, SIDECAR)
    there = {entry.name for folder in (VECTORS, METADATA) for entry in target.list(folder)}
    own = {file for name in source.names for file in _names(name)}
    strange = {
        key: value for key, value in before.items() if key not in ("shards", "complete") and sidecar.get(key) != value
    }
    if strange or (there - own and not before):
        what = f"{min(strange)} {strange[min(strange)]}" if strange else f"{min(there - own)}, of no export of this output"
        raise UsageError(f"{target.address}: another export is there ({what}); choose another folder or delete it")
    # From here to its end an export is not complete, and holds files of this state of the output only.
    target.write_atomic(SIDECAR, _json_bytes(sidecar | {"complete": False}))
    target.delete(sorted(there - own))

    def write(name: str) -> tuple[int, bool]:
        vectors, metadata = _names(name)
        if {vectors, metadata} <= there:
            with target.open(metadata) as file:
                return int(pq.read_metadata(file).num_rows), True
        values, kept = _shard(source, name)
        for file_name, content in ((vectors, _npy_bytes(values)), (metadata, _parquet(kept))):
            target.write_atomic(file_name, content)
        return len(values), False

    with ThreadPoolExecutor(reader_threads(source.storage)) as pool:
        done = list(pool.map(write, source.names))
    target.write_atomic(SIDECAR, _json_bytes(sidecar | {"complete": True}))
    return Export(target.address, sum(rows for rows, _ in done), sum(kept for _, kept in done))


def _names(shard: str) -> tuple[str, str]:
    stem = shard.removesuffix(".parquet")
    return f"{VECTORS}/{stem}.npy", f"{METADATA}/{stem}.parquet"


def _sidecar(source: _Source) -> dict[str, Any]:
    described = json.loads(json.dumps(source.formats[0].described()))
    job = {"output": source.storage.address, "sha256": source.sha256, "model": source.model}
    return {**job, **described, "shards": list(source.names)}


def _json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=2).encode()


def _json(storage: Storage, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read(name)))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StorageError(f"{storage.url(name)}: cannot be read ({first_line(error)}); delete it") from error


@contextlib.contextmanager
def _whole(source: _Source, name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        where = source.storage.url(name)
        raise StorageError(f"{where}: cannot be read ({first_line(error)}); see kosbert-ray verify") from error


def _shard(source: _Source, name: str) -> tuple[npt.NDArray[Any], pa.Table]:
    """Values ``[n, width]`` as they are stored, and the columns of these rows; rows without a vector are left out."""
    format = source.formats[0]
    with _whole(source, name), source.storage.open(name) as file:
        table = pq.read_table(file, columns=[*source.columns, format.column])
    rows = np.arange(table.num_rows)[table[format.column].is_valid().to_numpy()]
    table = table.take(pa.array(rows))
    values = table[format.column].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, format.width)
    kept = table.drop_columns([format.column]).replace_schema_metadata(None)
    places = {"shard": pa.array([name] * len(rows)), "row": pa.array(rows, pa.int64())}
    for column, place in places.items():
        if column not in kept.column_names:
            kept = kept.append_column(column, place)
    return values, kept


def _npy_bytes(values: npt.NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    return sink.getvalue()


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


# -- Lance ---------------------------------------------------------------------------------------------------------


def _lance(source: _Source, address: str, say: Callable[[str], None]) -> Export:
    try:
        import lance
    except ImportError as error:
        raise UsageError("--format lance: not installed; pip install 'kosbert-ray[lance]'") from error
    if not source.names:
        raise InputError(f"{source.storage.url()}: there are no rows in it")
    options = source.storage.options.object_store_options() if "://" in address else None
    say(f"writing a new version of {address}")
    batches = _batches(source)
    first = next(batches)
    try:
        reader = pa.RecordBatchReader.from_batches(first.schema, chain((first,), batches))
        written = lance.write_dataset(reader, address, mode="overwrite", storage_options=options)
        return Export(address, int(written.count_rows()), 0)
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{address}: Lance cannot write there ({first_line(error)})") from error


def _batches(source: _Source) -> Iterator[pa.RecordBatch]:
    """All rows; vectors as ``fixed_size_list``, which is what Lance indexes."""
    fields = {
        format.column: replace(format, list_type="fixed_size_list", nullable=True).field() for format in source.formats
    }
    for name in source.names:
        with _whole(source, name), source.storage.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=[*source.columns, *fields]):
                schema = pa.schema([fields.get(field.name, field) for field in batch.schema])
                yield pa.record_batch(
                    [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema
                )
