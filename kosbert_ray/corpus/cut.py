"""Splits the rows of a fragment into slices while they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.fragments import Fragment, Limits, Slice
from kosbert_ray.corpus.options import TARGET_ROWS
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.corpus.sizes import row_bytes
from kosbert_ray.errors import InputBroken


def cut(fragment: Fragment, batches: Iterable[tuple[pa.Table, int]], limits: Limits) -> Iterator[tuple[Slice, pa.Table]]:
    """Splits a fragment's rows into slices, independently of the batches they arrive in.

    Args:
        fragment: what is being read.
        batches: row tables (see ``row_table``), each with the bytes of the file that were read for it; at least one, which
            may be empty.
        limits: size of a slice.

    Yields:
        Each slice with its rows. A fragment without rows yields one empty slice, so that it is accounted for.

    Raises:
        InputBroken: the file is broken from some point on; the rows before it have been yielded.
    """
    index = row = 0
    held: tuple[int, int, pa.Table] | None = None  # the newest complete slice, until it is known whether it is the last
    try:
        for count, size, table in _whole_slices(batches, limits):
            if held:
                yield Slice(fragment, index, row, held[0], False, held[1]), held[2]
                index, row = index + 1, row + held[0]
            held = (count, size, table)
    except InputBroken:
        # Every attempt ends here, so the rows before it can be committed. Without a last slice the fragment is incomplete.
        if held and held[0]:
            yield Slice(fragment, index, row, held[0], False, held[1]), held[2]
        raise
    if held:
        yield Slice(fragment, index, row, held[0], True, held[1]), held[2]


def _whole_slices(batches: Iterable[tuple[pa.Table, int]], limits: Limits) -> Iterator[tuple[int, int, pa.Table]]:
    target = limits.max_bytes if limits.target_bytes is None else limits.target_bytes
    parts: list[pa.Table] = []
    rows = size = carried = 0  # of the slice being filled
    read = 0  # bytes of the file not yet assigned to a slice
    yielded = False
    try:
        for table, read_bytes in batches:
            if not table.num_rows:
                read += read_bytes
                continue
            lengths = pc.fill_null(pc.binary_length(table[TEXT]), 0).to_numpy()
            ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
            carried_ends = _carried_ends(table)
            done = 0
            while done < table.num_rows:
                # The number of rows of this batch that still fit.
                fit = min(
                    limits.max_rows - rows,
                    _fitting(ends, done, limits.max_bytes - size),
                    _fitting(carried_ends, done, limits.max_carried - carried),
                    max(_fitting(ends, done, target - size), TARGET_ROWS - rows),
                    table.num_rows - done,
                )
                fit = max(0, fit)
                if fit == 0 and rows == 0:
                    fit = 1
                parts.append(table.slice(done, fit))
                # A batch may span slices: each is assigned its share of the bytes read for the batch.
                read += read_bytes * (done + fit) // table.num_rows - read_bytes * done // table.num_rows
                size += int(ends[done + fit] - ends[done])
                carried += int(carried_ends[done + fit] - carried_ends[done])
                done, rows = done + fit, rows + fit
                if done < table.num_rows:
                    yield rows, read, pa.concat_tables(parts)
                    parts, rows, size, carried, read, yielded = [], 0, 0, 0, 0, True
    except InputBroken:
        if rows:
            yield rows, read, pa.concat_tables(parts)
        raise
    if rows or not yielded:
        yield rows, read, pa.concat_tables(parts) if parts else table.slice(0, 0)


def _fitting(ends: npt.NDArray[np.int64], done: int, left: int) -> int:
    """Number of rows after the first ``done`` that fit into ``left`` bytes; ``ends`` are the end offsets of rows."""
    return int(np.searchsorted(ends, ends[done] + left, side="right")) - 1 - done


def _carried_ends(table: pa.Table) -> npt.NDArray[np.int64]:
    """End offsets in bytes of each row's carried columns: int64 ``[n + 1]``, from 0."""
    sizes = np.zeros(table.num_rows, np.int64)
    for name in table.column_names:
        if name not in (TEXT, POSITION, REASON) and table.num_rows:
            sizes += np.concatenate([row_bytes(chunk) for chunk in table[name].chunks])
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
