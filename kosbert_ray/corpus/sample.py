"""Which slices of a plan to look at, so that what they hold tells of the whole corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kosbert_ray.corpus.fragments import Fragment, Slice
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.errors import InputError, StorageError

Kind = tuple[str, str]  # of files: format and compression, which go together with how a file's size tells of its rows


@dataclass(frozen=True)
class Stratum:
    """The fragments of one kind of file.

    ``size`` is what a slice's own is a share of: rows of Parquet, bytes as stored of all else.
    """

    kind: Kind
    fragments: tuple[Fragment, ...]
    size: int

    def size_of(self, piece: Slice) -> int:
        """A slice's share of ``size``."""
        return piece.rows if self.kind[0] == "parquet" else piece.input_bytes


def strata(fragments: list[Fragment]) -> list[Stratum]:
    """The fragments by kind."""
    kinds: dict[Kind, list[Fragment]] = defaultdict(list)
    for fragment in fragments:
        kinds[fragment.file.format, fragment.file.compression or ""].append(fragment)
    return [Stratum(kind, tuple(items), sum(item.stop - item.start for item in items)) for kind, items in kinds.items()]


def sampled_slices(
    reader: FragmentReader, stratum: Stratum, count: int
) -> Iterator[tuple[Slice, pa.Table] | InputError | StorageError]:
    """Slices at even distances through the stratum, with their rows; the same each time.

    A compressed file or an Arrow stream is read from its start to the slice, so of those the first slices are taken.

    Args:
        reader: reads fragments.
        stratum: what to sample.
        count: how many slices; fewer if there are not so many.

    Yields:
        The slices; instead of one that cannot be read, why.
    """
    ends = np.cumsum([item.stop - item.start for item in stratum.fragments])
    if not len(ends) or not ends[-1]:
        return
    # The middle of each of ``count`` equal parts: a fragment, and how far into it.
    places = (np.arange(count) + 0.5) * ends[-1] / count
    which = np.searchsorted(ends, places, side="right")
    seen: set[tuple[int, int]] = set()
    for index, place in zip(which.tolist(), places.tolist(), strict=True):
        fragment = stratum.fragments[index]
        inside = place - (ends[index] - (fragment.stop - fragment.start))
        if fragment.file.one_pass:
            inside = 0
        try:
            found = _slice_at(reader, fragment, stratum, inside)
        except (InputError, StorageError) as error:
            yield error
            continue
        if found and (index, found[0].index) not in seen:
            seen.add((index, found[0].index))
            yield found


def _slice_at(reader: FragmentReader, fragment: Fragment, stratum: Stratum, inside: float) -> tuple[Slice, pa.Table] | None:
    """The slice that holds what lies ``inside`` the fragment, or its last one."""
    found = None
    passed = 0
    for found in reader.slices(fragment):
        passed += stratum.size_of(found[0])
        if passed > inside:
            break
    return found
