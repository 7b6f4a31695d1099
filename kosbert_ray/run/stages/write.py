"""Write: rejected rows first, then the shard, whose presence is the commit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.address import addresses
from kosbert_ray.corpus.row_table import TEXT
from kosbert_ray.encoder.packing import take_rows
from kosbert_ray.errors import InputError
from kosbert_ray.run.chunk_rows import collapse, sources
from kosbert_ray.run.slice_row import KEEP, MADE, VECTOR_ROWS, SliceRow
from kosbert_ray.run.stages.work import Outcome, Work, run_stage
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.shard import REJECTED_SCHEMA, checksum, write_rejected, write_shard
from kosbert_ray.storage import Storage
from kosbert_ray.vectors.kinds import SPARSE, Kind
from kosbert_ray.vectors.token_vectors import TokenVectors

NONE_REJECTED = REJECTED_SCHEMA.empty_table()
WRITERS = 8  # slices that are written at once to an object store, whose answer each waits for


def write(slices: Sequence[SliceRow], work: Work) -> list[Outcome]:
    """Commits slices and returns their outcomes."""
    threads = WRITERS if work.output.remote else 1
    done = run_stage("write", slices, work, lambda item: write_slice(item, work), threads)
    return [item if isinstance(item, Outcome) else _dropped(item) for item in done]


def _dropped(row: SliceRow) -> Outcome:
    return Outcome(failed=row.failed, changed=row.changed)


@lru_cache(maxsize=4)
def _require_claim(output: Storage, digest: str) -> None:
    """Checks the claim before a worker's first commit: another job may have replaced one that had committed nothing."""
    Ledger(output).require_claim(digest)


def write_slice(row: SliceRow, work: Work) -> Outcome:
    """Commits one slice.

    Raises:
        InputError: a row was rejected and ``on_bad_row`` is "fail".
        FingerprintMismatch: the output belongs to another job by now.
        StorageError: the store refuses.
    """
    started = time.perf_counter()
    _require_claim(work.output, work.fingerprint)
    row = collapse(row)
    rejected = _rejected(row, work)
    first = _address(rejected.slice(0, 1).to_pylist()[0]) if rejected.num_rows else ""
    if first and work.on_bad_row == "fail":
        raise InputError(f"{work.reader.storage.url(first)}; fix the input or set on_bad_row=reject")
    assert row.receipt is not None
    receipt = replace(row.receipt, rows=len(row.reasons) - rejected.num_rows, rejected=rejected.num_rows)
    if rejected.num_rows:
        write_rejected(work.output, receipt.shard, rejected)
    size = 0
    if receipt.shard:
        vectors = {kind: _vectors(row, work, kind) for kind in work.kinds}
        keep, arrays = _columns(row, work, vectors)
        empty = int((vectors[SPARSE].counts == 0).sum()) if SPARSE in vectors else 0
        receipt = replace(receipt, embedding_xxh128=checksum(*arrays), empty_sparse=empty)
        footer = receipt.footer() | {"fingerprint": work.fingerprint}
        size = write_shard(work.output, receipt.shard, keep, arrays, work.formats, footer, work.field_ids)
    seconds = time.perf_counter() - started
    receipt = replace(receipt, output_bytes=size, write_seconds=seconds, finished_at=time.time())
    return Outcome(receipt, rejected=first, notices=row.notices)


def _columns(row: SliceRow, work: Work, vectors: Mapping[Kind, Any]) -> tuple[dict[str, pa.Array], list[pa.Array]]:
    """The shard's columns: those carried through, and the vectors of the good rows in each format."""
    keep = {name: row.columns[KEEP + name] for name in work.reader.columns.keep.names}
    if work.keep_address:
        assert row.fragment is not None
        keep |= addresses(row.fragment, row.positions)
    keep |= {name: row.columns[MADE + name] for name in work.made_columns}
    good, nullable = row.good, work.formats[0].nullable
    if row.reasons.null_count < len(row.reasons) and not nullable:
        keep = {name: column.filter(good) for name, column in keep.items()}
    return keep, [item.array(vectors[item.kind], good if nullable else None) for item in work.formats]


def _vectors(row: SliceRow, work: Work, kind: Kind) -> Any:
    """The vectors of the good rows, of one kind."""
    found = row.vectors(kind, next(item.dimension for item in work.formats if item.kind == kind))
    rows = row.columns[VECTOR_ROWS].to_numpy()
    if isinstance(found, np.ndarray):
        return take_rows(found, rows)
    if isinstance(found, TokenVectors) and work.token_pooling:
        found = work.token_pooling(found)
    return found if np.array_equal(rows, np.arange(len(found))) else found.take(rows)


def _rejected(row: SliceRow, work: Work) -> pa.Table:
    """The slice's rejected rows, as ``REJECTED_SCHEMA``."""
    if row.reasons.null_count == len(row.reasons):
        return NONE_REJECTED
    bad = pc.invert(row.good)
    positions = row.positions.filter(bad)
    fragment, receipt = row.fragment, row.receipt
    assert fragment is not None and receipt is not None
    texts = row.texts.filter(bad) if work.rejected_text else pa.nulls(len(positions), row.texts.type)
    if row.reread and work.rejected_text:
        _, table = next(work.reader.slices(fragment, range(receipt.slice_index)))
        texts = table[TEXT].combine_chunks().take(pa.array(sources(row)).filter(bad))
    rows = pa.array(sources(row)).filter(bad)
    return pa.table(
        [*addresses(fragment, positions).values(), row.reasons.filter(bad), texts, rows], schema=REJECTED_SCHEMA
    )


def _address(rejected: dict[str, Any]) -> str:
    at = f"row {rejected['row']}" if rejected["row"] is not None else f"byte {rejected['byte_offset']}"
    return f"{rejected['file']}: {at}: {rejected['reason']}"
