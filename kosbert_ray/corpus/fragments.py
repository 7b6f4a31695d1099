"""Fragments and slices: the parts into which a corpus is split.

A **fragment** is what one read task reads in one pass: row groups of a Parquet file, a byte range of an uncompressed line
file, or all of a file that can only be read from its start (compressed, or Arrow). Files are split into fragments before
the run starts. A **slice** is the unit of work and of commit: consecutive rows of one fragment, at most ``max_rows`` rows
and ``max_bytes`` of text, that become one output file. Fragments are split into slices while they are read. Both are pure
functions of the listing, the limits and the rows, so every run on every machine makes the same slices with the same names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.options import MAX_BYTES, MAX_ROWS, SliceOptions

READER_VERSION = 2  # changes when the rows of a file or the ends of slices do; version 1 is 0.1.0's, which had no number
STEM_BYTES = 100  # a file name has 255, or 143 on some encrypting file systems
MAX_CARRIED_BYTES = 128 * 2**20  # bounds the memory of the stages, which carry these columns


@dataclass(frozen=True)
class Limits:
    """Size of a slice.

    Separate from SliceOptions: limits are also read back from the names of older cuts, and ``max_carried`` is no option.

    Attributes:
        max_rows, max_bytes, max_carried: maximum rows, bytes of UTF-8 text, and bytes of carried columns. A larger row is a
            slice of its own.
        target_bytes: bytes of text at which a slice ends if it has ``TARGET_ROWS`` rows; None for no target.
    """

    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES
    max_carried: int = MAX_CARRIED_BYTES
    target_bytes: int | None = None

    @staticmethod
    def of(options: SliceOptions) -> Limits:
        """The limits of a job."""
        return Limits(options.max_rows, options.max_bytes, target_bytes=options.target_bytes)

    @property
    def cut(self) -> str:
        """Name of the cut that the current reader makes with these limits; see :attr:`Fragment.cut`."""
        target = () if self.target_bytes is None else (self.target_bytes,)
        return ";".join(map(str, (READER_VERSION, self.max_rows, self.max_bytes, *target)))


@dataclass(frozen=True)
class Fragment:
    """A part of one file, read in one pass.

    Attributes:
        file: the file.
        index: number of the fragment in its file, from 0.
        start: first row of a fragment of Parquet row groups; otherwise its first byte.
        stop: the row or byte after the last one. A byte range contains the lines whose first byte is in it.
        row_groups: range of Parquet row groups.
        cut: reader version and limits by which it is split into slices; empty for 0.1.0. Slices of different cuts of a
            fragment cannot be combined.
    """

    file: InputFile
    index: int
    start: int
    stop: int
    row_groups: tuple[int, int] | None = None
    cut: str = ""

    def with_cut(self, cut: str) -> Fragment:
        """The fragment with another cut."""
        return Fragment(self.file, self.index, self.start, self.stop, self.row_groups, cut)

    @property
    def limits(self) -> Limits | None:
        """Limits of its cut; None for a cut of 0.1.0, which does not name them."""
        return limits_of(self.cut)

    @property
    def input_bytes(self) -> int:
        """Its share of the stored file's bytes."""
        if self.row_groups is None:
            return self.stop - self.start
        return self.file.size * (self.stop - self.start) // max(1, self.file.rows)

    @cached_property
    def id(self) -> str:
        """Stable name of the fragment; changes with the file and the cut."""
        cut = (self.cut,) if self.cut else ()
        return _digest(self.file.name, self.file.size, self.file.version, self.start, self.stop, *cut)


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a fragment.

    Attributes:
        fragment: the fragment.
        index: number of the slice in its fragment, from 0.
        row: number of its first row in the fragment, from 0.
        rows: number of rows.
        last: whether it is the last slice of the fragment.
        input_bytes: bytes of the stored file that were read for it, the unit of progress and ETA.
    """

    fragment: Fragment
    index: int
    row: int
    rows: int
    last: bool
    input_bytes: int

    def key(self, fingerprint: str) -> str:
        """8 hex digits of the SHA-256 of the file's identity, the rows' address and the job's fingerprint."""
        return _digest(self.fragment.id, self.row, self.rows, fingerprint)[:8]

    def shard_name(self, fingerprint: str) -> str:
        """``<input file stem>.<fragment>-<slice>.<key>.parquet``"""
        return shard_name(self.fragment, self.index, self.key(fingerprint))


@lru_cache(maxsize=64)
def limits_of(cut: str) -> Limits | None:
    """The limits that a cut names; None for a cut of 0.1.0, which names none."""
    if not cut:
        return None
    _, rows, size, *target = map(int, cut.split(";"))
    return Limits(rows, size, target_bytes=target[0] if target else None)


def is_current(cut: str) -> bool:
    """True if the current reader makes this cut."""
    limits = limits_of(cut)
    return limits is not None and limits.cut == cut


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def shard_name(fragment: Fragment, index: int, key: str) -> str:
    """Name of an output file. Its stem has only letters, digits, ``_``, ``-`` and ``.``, and is never hidden."""
    stem = re.sub(r"[^\w.-]", "_", fragment.file.name.rpartition("/")[2])
    for suffix in (r"\.(gz|zst|zip)$", r"\.\w+$"):
        stem = re.sub(suffix, "", stem, flags=re.IGNORECASE)
    stem = stem.lstrip("._").encode()[:STEM_BYTES].decode(errors="ignore") or "part"
    return f"{stem}.{fragment.index:05d}-{index:05d}.{key}.parquet"


def whole_file(file: InputFile) -> Iterator[Fragment]:
    """One fragment for all of a file; none if it is empty."""
    if file.size:
        yield Fragment(file, 0, 0, file.size)


def byte_ranges(file: InputFile, size: int) -> Iterator[Fragment]:
    """Fragments of ``size`` bytes; the last may be smaller."""
    for index, start in enumerate(range(0, file.size, size)):
        yield Fragment(file, index, start, min(start + size, file.size))


def slice_name(file: str, fragment: int, number: int) -> str:
    """Returns the name of a slice in messages and in the progress: its file and its two numbers."""
    return f"{file}, slice {fragment}-{number}"
