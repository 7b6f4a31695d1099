"""How the corpus is cut: files into fragments before anything runs, fragments into slices while they are read.

A **fragment** is what one read task reads in one pass: some row groups of a Parquet file, a byte range of an
uncompressed line file, or the whole of a compressed one or an Arrow stream (which can only be read from their start). A
**slice** is the unit of work and of commit: consecutive rows of one fragment, at most ``max_rows`` of them and
``max_bytes`` of text, that become one output file. Both cuts are pure functions of the listing, the limits and the rows,
so every run on every machine cuts the same slices and gives them the same names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.listing import InputFile, RowGroup
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.corpus.sizes import row_bytes
from kosbert_ray.errors import InputBroken

READER_VERSION = 2  # of what the rows of a file are and where slices end; 0.1.0's, which had no number, was the first
MAX_ROWS = 16_384
MAX_BYTES = 32 * 2**20
STEM_BYTES = 100  # of a file name's 255, or of the 143 that some encrypting file systems leave
MAX_CARRIED_BYTES = 128 * 2**20  # of the columns carried through a slice: what the stages hold and pass on


@dataclass(frozen=True)
class Limits:
    """The most rows, bytes of UTF-8 text and bytes of carried columns in a slice; a larger row is one of its own."""

    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES
    max_carried: int = MAX_CARRIED_BYTES

    @property
    def cut(self) -> str:
        """Names the cut that today's reader makes by these limits; see :attr:`Fragment.cut`."""
        return f"{READER_VERSION};{self.max_rows};{self.max_bytes}"


@dataclass(frozen=True)
class Fragment:
    """A part of one file, read in one pass: rows ``[start, stop)`` of a Parquet file, else its bytes ``[start, stop)``.

    ``index`` counts the file's fragments from 0; ``row_groups`` is the range of Parquet row groups. A byte range holds
    the lines whose first byte lies in it. ``cut`` is the reader's version and the limits by which it becomes slices,
    empty for 0.1.0's: slices of one fragment under two cuts do not go together.
    """

    file: InputFile
    index: int
    start: int
    stop: int
    row_groups: tuple[int, int] | None = None
    cut: str = ""

    @property
    def limits(self) -> Limits | None:
        """Those of its cut; None for 0.1.0's, which does not name them."""
        return limits_of(self.cut)

    @property
    def input_bytes(self) -> int:
        """Its share of the stored file's bytes."""
        if self.row_groups is None:
            return self.stop - self.start
        return self.file.size * (self.stop - self.start) // max(1, self.file.rows)

    @property
    def id(self) -> str:
        """Stable name of the fragment: it changes when the file or the cut does."""
        cut = (self.cut,) if self.cut else ()
        return _digest(self.file.name, self.file.size, self.file.version, self.start, self.stop, *cut)


@dataclass(frozen=True)
class Slice:
    """Rows ``[row, row + rows)`` of a fragment, counted from its first; ``last`` marks the fragment's end.

    ``input_bytes`` is how much of the stored file it took to read them: what progress and ETA are counted in.
    """

    fragment: Fragment
    index: int
    row: int
    rows: int
    last: bool
    input_bytes: int

    def key(self, fingerprint: str) -> str:
        """8 hex digits of sha256 over the file's identity, the rows' address and the job's fingerprint."""
        return _digest(self.fragment.id, self.row, self.rows, fingerprint)[:8]

    def shard_name(self, fingerprint: str) -> str:
        """``<input file stem>.<fragment>-<slice>.<key>.parquet``"""
        return shard_name(self.fragment, self.index, self.key(fingerprint))


def limits_of(cut: str) -> Limits | None:
    """The limits that a cut names; None for 0.1.0's, which names none."""
    if not cut:
        return None
    _, rows, size = cut.split(";")
    return Limits(int(rows), int(size))


def is_current(cut: str) -> bool:
    """Whether a cut is one that today's reader makes."""
    limits = limits_of(cut)
    return limits is not None and limits.cut == cut


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def shard_name(fragment: Fragment, index: int, key: str) -> str:
    """The output name; the stem keeps letters, digits, ``-`` and ``.``, and never starts as a hidden file does."""
    stem = re.sub(r"[^\w.-]", "_", fragment.file.name.rpartition("/")[2])
    for suffix in (r"\.(gz|zst|zip)$", r"\.\w+$"):
        stem = re.sub(suffix, "", stem, flags=re.IGNORECASE)
    stem = stem.lstrip("._").encode()[:STEM_BYTES].decode(errors="ignore") or "part"
    return f"{stem}.{fragment.index:05d}-{index:05d}.{key}.parquet"


def plan(files: Iterable[InputFile], limits: Limits, newlines_in_values: bool = False) -> Iterator[Fragment]:
    """Cuts files into fragments, in the order of the files.

    Parquet is cut at row groups: a group of several slices is a fragment of its own, small neighbours share one. An
    uncompressed line file is cut every ``max_bytes``; a compressed one is one fragment, and so are an Arrow stream and a
    CSV file whose quoted values hold newlines (``newlines_in_values``). Empty files have none.
    """
    for file in files:
        if file.format == "parquet":
            yield from _plan_parquet(file, limits)
        elif file.one_pass or (newlines_in_values and file.format in ("csv", "tsv")):
            if file.size:
                yield Fragment(file, 0, 0, file.size)
        else:
            for index, start in enumerate(range(0, file.size, limits.max_bytes)):
                yield Fragment(file, index, start, min(start + limits.max_bytes, file.size))


def _plan_parquet(file: InputFile, limits: Limits) -> Iterator[Fragment]:
    index = start = first = rows = size = 0
    groups = file.row_groups
    # A fragment travels to its reader, which needs the file's number of rows but not the list of its row groups.
    file = replace(file, row_groups=(RowGroup(file.rows, sum(group.bytes for group in groups)),))
    for number, group in enumerate(groups):
        if rows and (rows + group.rows > limits.max_rows or size + group.bytes > limits.max_bytes):
            yield Fragment(file, index, start, start + rows, (first, number))
            index, start, first, rows, size = index + 1, start + rows, number, 0, 0
        rows, size = rows + group.rows, size + group.bytes
    if rows:
        yield Fragment(file, index, start, start + rows, (first, len(groups)))


def cut(fragment: Fragment, batches: Iterable[tuple[pa.Table, int]], limits: Limits) -> Iterator[tuple[Slice, pa.Table]]:
    """Cuts a fragment's rows into slices, whatever the batches they arrive in.

    Args:
        fragment: what is being read.
        batches: row tables (see ``rows``), each with the bytes of the file that were read for it; at least one, be it
            empty.
        limits: the most rows and bytes of text in a slice.

    Yields:
        Each slice with its rows. A fragment without rows yields one empty slice, so that it too is accounted for.

    Raises:
        InputBroken: the file is broken from some point on; the rows before it have been yielded.
    """
    index = row = 0
    held: tuple[int, int, pa.Table] | None = None  # the newest whole slice, until we know whether it is the last
    try:
        for count, size, table in _whole_slices(batches, limits):
            if held:
                yield Slice(fragment, index, row, held[0], False, held[1]), held[2]
                index, row = index + 1, row + held[0]
            held = (count, size, table)
    except InputBroken:
        # The same at each attempt, so what came before can be committed. Without a last slice the fragment is incomplete.
        if held and held[0]:
            yield Slice(fragment, index, row, held[0], False, held[1]), held[2]
        raise
    if held:
        yield Slice(fragment, index, row, held[0], True, held[1]), held[2]


def _whole_slices(batches: Iterable[tuple[pa.Table, int]], limits: Limits) -> Iterator[tuple[int, int, pa.Table]]:
    parts: list[pa.Table] = []
    rows = size = carried = 0  # of the slice being filled
    read = 0  # bytes of the file not yet given to a slice
    yielded = False
    try:
        for table, read_bytes in batches:
            if not table.num_rows:
                read += read_bytes
            lengths = pc.fill_null(pc.binary_length(table[TEXT]), 0).to_numpy()
            ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
            carried_ends = _carried_ends(table)
            done = 0
            while done < table.num_rows:
                # The most rows of this batch that still fit, by each limit.
                fit = min(
                    limits.max_rows - rows,
                    _fitting(ends, done, limits.max_bytes - size),
                    _fitting(carried_ends, done, limits.max_carried - carried),
                    table.num_rows - done,
                )
                fit = max(0, fit)
                if fit == 0 and rows == 0:
                    fit = 1
                parts.append(table.slice(done, fit))
                # A batch may span slices: each is given its rows' share of what was read for the batch.
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
    """How many rows after the first ``done`` take no more than ``left`` bytes; ``ends`` are where rows end."""
    return int(np.searchsorted(ends, ends[done] + left, side="right")) - 1 - done


def _carried_ends(table: pa.Table) -> npt.NDArray[np.int64]:
    """Where each row's carried columns end, in bytes: int64 ``[n + 1]``, from 0."""
    sizes = np.zeros(table.num_rows, np.int64)
    for name in table.column_names:
        if name not in (TEXT, POSITION, REASON) and table.num_rows:
            sizes += np.concatenate([row_bytes(chunk) for chunk in table[name].chunks])
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
