"""Read: fragments of input files become slices."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator

import pyarrow as pa

from kosbert_ray.corpus.fragments import Fragment, Slice
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.errors import InputChanged, InputError, StorageError, described
from kosbert_ray.run.monitor.board import MAX_ATTEMPTS
from kosbert_ray.run.slice_row import FRAGMENT, KEEP, SliceRow, bundle
from kosbert_ray.run.stages.work import MAX_BUNDLED, Work
from kosbert_ray.shards.receipt import Receipt

Sizes = tuple[int, int, int, int]  # slices, rows, bytes in memory, bytes of stored input


def read_slices(work: Work, fragments: list[tuple[Fragment, frozenset[int]]]) -> Iterator[pa.Table]:
    """Reads the slices that are not committed yet, small ones bundled.

    Args:
        work: the job.
        fragments: each with the indices of its committed slices.
    """
    limits = (MAX_BUNDLED, work.bundle.max_rows, work.bundle.max_bytes, work.bundle_input_bytes)
    held: list[SliceRow] = []
    sums: Sizes = (0, 0, 0, 0)
    for fragment, done in fragments:
        for row in _fragment_slices(work, fragment, done):
            sizes = _sizes(row)
            if held and any(part + more > limit for part, more, limit in zip(sums, sizes, limits, strict=True)):
                yield bundle(held)
                held, sums = [], (0, 0, 0, 0)
            held.append(row)
            sums = (sums[0] + sizes[0], sums[1] + sizes[1], sums[2] + sizes[2], sums[3] + sizes[3])
    if held:
        yield bundle(held)


def _sizes(row: SliceRow) -> Sizes:
    if row.receipt is None:
        return 1, 0, 0, 0
    return 1, row.receipt.input_rows, row.nbytes, row.receipt.input_bytes


def _fragment_slices(work: Work, fragment: Fragment, done: frozenset[int]) -> Iterator[SliceRow]:
    """Reads one fragment's slices. An error ends the fragment, not the run."""
    pieces = work.reader.slices(fragment, done)
    address = f"{work.reader.storage.url(fragment.file.name)}, fragment {fragment.index}"
    number = 0
    while True:
        row: SliceRow | None
        with work.board.working_on("read", f"{address}, open slice {number}") as attempt:
            started = time.perf_counter()
            try:
                if attempt > MAX_ATTEMPTS:
                    raise InputError(f"{address}: killed {MAX_ATTEMPTS} workers in stage read")
                found = next(pieces, None)
                row = slice_row(work, *found, time.perf_counter() - started) if found else None
            except InputChanged:
                row = SliceRow(changed=fragment.file.name)
            except (InputError, StorageError) as error:
                row = SliceRow(failed=str(error))
            except Exception as error:
                row = SliceRow(failed=f"{address}: cannot be read ({described(error)})")
        if row is None:
            return
        yield row
        if row.dropped:
            return
        number += 1


def slice_row(work: Work, piece: Slice, table: pa.Table, read_seconds: float) -> SliceRow:
    """Starts a slice on its way.

    Args:
        work: the job.
        piece: the slice.
        table: its rows (see ``corpus.row_table``).
        read_seconds: how long reading took.
    """
    fragment = piece.fragment
    receipt = Receipt.unfinished(
        shard=piece.shard_name(work.fingerprint) if piece.rows else "",
        file=fragment.file.name,
        version=fragment.file.version,
        fragment=fragment.id,
        fragment_index=fragment.index,
        slice_index=piece.index,
        last=piece.last,
        cut=fragment.cut,
        fingerprint=work.fingerprint,
        input_rows=table.num_rows,
        input_bytes=piece.input_bytes,
        read_seconds=read_seconds,
    )
    columns = {name: table[name].combine_chunks() for name in (TEXT, POSITION, REASON)}
    columns |= {KEEP + name: table[name].combine_chunks() for name in work.reader.columns.keep.names}
    columns[FRAGMENT] = pa.array([pickle.dumps(fragment)], pa.binary())
    address = f"{work.reader.storage.url(fragment.file.name)}, slice {fragment.index}-{piece.index}"
    return SliceRow(address, receipt, columns=columns)
