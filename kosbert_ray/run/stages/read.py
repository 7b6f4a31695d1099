"""Read: fragments of input files become slices."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from operator import add, gt, lt

import pyarrow as pa

from kosbert_ray.corpus.fragments import Fragment, Slice, slice_name
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.errors import InputChanged, InputError, StorageError, described
from kosbert_ray.run.monitor.board import MAX_ATTEMPTS
from kosbert_ray.run.slice_row import KEEP, SliceRow
from kosbert_ray.run.stages.work import MAX_BUNDLED, Work
from kosbert_ray.shards.receipt import Receipt

Sizes = tuple[int, ...]  # slices, rows, bytes in memory, bytes of stored input


def read_slices(work: Work, fragments: Sequence[tuple[Fragment, frozenset[int]]]) -> Iterator[list[SliceRow]]:
    """Reads the slices that are not committed yet, small ones together.

    Args:
        work: the job.
        fragments: each with the indices of its committed slices.
    """
    most = (MAX_BUNDLED, work.bundle.max_rows, work.bundle.max_bytes, work.bundle_input_bytes)
    reading = _Reading(work)
    rows = reading.slices(fragments)
    row: SliceRow | None = None  # read, but too much for the slices before it
    ended = False
    while not ended:
        held: list[SliceRow] = []
        sums: Sizes = (0,) * len(most)
        # Unique, and the same when a killed task is run again.
        place = (row and row.address) or reading.place or _place(work, fragments[0][0], 0)
        with work.board.working_on("read", f"{place} and what follows") as attempt:
            # Slices are counted one by one only after some of these have killed a worker: the board's answer takes as long
            # as reading a small file.
            reading.counts = attempt > 1
            while not held or all(map(lt, sums, most)):
                row = row or next(rows, None)
                if row is None:
                    ended = True
                    break
                totals = tuple(map(add, sums, _sizes(row)))
                if held and any(map(gt, totals, most)):
                    break
                held.append(row)
                row, sums = None, totals
        if held:
            yield held


def _sizes(row: SliceRow) -> Sizes:
    if row.receipt is None:
        return 1, 0, 0, 0
    return 1, row.receipt.input_rows, row.nbytes, row.receipt.input_bytes


class _Reading:
    """Reads fragments one after another.

    Attributes:
        place: the slice to be read next; empty before the first.
        counts: whether to count each slice by itself.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self.place = ""
        self.counts = False

    def slices(self, fragments: Iterable[tuple[Fragment, frozenset[int]]]) -> Iterator[SliceRow]:
        """Yields the open slices. An error ends a fragment, not the run."""
        for fragment, done in fragments:
            yield from self._fragment_slices(fragment, done)

    def _fragment_slices(self, fragment: Fragment, done: frozenset[int]) -> Iterator[SliceRow]:
        work = self._work
        pieces = work.reader.slices(fragment, done)
        number = 0
        self.place = _place(work, fragment, number)
        while True:
            row: SliceRow | None
            with work.board.working_on("read", self.place) if self.counts else nullcontext(1) as attempt:
                started = time.perf_counter()
                try:
                    if attempt > MAX_ATTEMPTS:
                        raise InputError(f"{self.place}: killed {MAX_ATTEMPTS} workers in stage read")
                    found = next(pieces, None)
                    row = slice_row(work, *found, time.perf_counter() - started) if found else None
                except InputChanged:
                    row = SliceRow(changed=fragment.file.name)
                except (InputError, StorageError) as error:
                    row = SliceRow(failed=str(error))
                except Exception as error:
                    row = SliceRow(failed=f"{self.place}: cannot be read ({described(error)})")
            if row is None:
                return
            number += 1
            self.place = _place(work, fragment, number)
            yield row
            if row.dropped:
                return


def _place(work: Work, fragment: Fragment, number: int) -> str:
    return f"{work.reader.storage.url(fragment.file.name)}, fragment {fragment.index}, open slice {number}"


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
    address = slice_name(work.reader.storage.url(fragment.file.name), fragment.index, piece.index)
    return SliceRow(address, receipt, fragment, columns=columns)
