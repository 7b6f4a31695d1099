"""Samples slices that are representative of a corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kosbert_ray.corpus.formats.table import info_of
from kosbert_ray.corpus.fragments import Fragment, Slice
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import REASON, TEXT
from kosbert_ray.errors import InputError, StorageError

Kind = tuple[str, str]  # format and compression of files; rows per byte are similar within a kind


@dataclass(frozen=True)
class Stratum:
    """The fragments of one kind of file.

    Attributes:
        kind: format and compression.
        fragments: the fragments.
        size: total of :meth:`size_of`, in rows if the fragments are row groups and in stored bytes otherwise.
    """

    kind: Kind
    fragments: tuple[Fragment, ...]
    size: int

    def size_of(self, piece: Slice) -> int:
        """A slice's share of ``size``."""
        return piece.input_bytes if piece.fragment.row_groups is None else piece.rows


def strata(fragments: list[Fragment]) -> list[Stratum]:
    """Groups fragments by kind."""
    kinds: dict[Kind, list[Fragment]] = defaultdict(list)
    for fragment in fragments:
        kinds[fragment.file.format, fragment.file.compression or ""].append(fragment)
    return [Stratum(kind, tuple(items), sum(item.stop - item.start for item in items)) for kind, items in kinds.items()]


def sampled_slices(
    reader: FragmentReader, stratum: Stratum, count: int
) -> Iterator[tuple[Slice, pa.Table] | InputError | StorageError]:
    """Yields slices at even distances through a stratum, with their rows; always the same ones.

    Of a file that can only be read from its start, the first slice is taken.

    Args:
        reader: reads the fragments.
        stratum: what to sample.
        count: number of slices; fewer if the stratum has fewer.

    Yields:
        The slices with their row tables; instead of a slice that cannot be read, the error.
    """
    ends = np.cumsum([item.stop - item.start for item in stratum.fragments])
    if not len(ends) or not ends[-1]:
        return
    # The middle of each of ``count`` equal parts: a fragment, and the distance from its start.
    places = (np.arange(count) + 0.5) * ends[-1] / count
    which = np.searchsorted(ends, places, side="right")
    seen: set[tuple[int, int]] = set()
    for index, place in zip(which.tolist(), places.tolist(), strict=True):
        fragment = stratum.fragments[index]
        inside = place - (ends[index] - (fragment.stop - fragment.start))
        if info_of(fragment.file).one_pass(fragment.file):
            inside = 0
        try:
            found = _slice_at(reader, fragment, stratum, inside)
        except (InputError, StorageError) as error:
            yield error
            continue
        if found and (index, found[0].index) not in seen:
            seen.add((index, found[0].index))
            yield found


def sampled_texts(reader: FragmentReader, fragments: list[Fragment], count: int) -> Iterator[pa.Array]:
    """Yields the texts of each sampled slice, large_string, without rejected rows; slices that cannot be read are left out.

    Args:
        reader: reads the fragments.
        fragments: what to sample.
        count: number of slices of each kind of file.
    """
    for part in strata(fragments):
        for found in sampled_slices(reader, part, count):
            if not isinstance(found, InputError | StorageError):
                table = found[1]
                yield table.filter(table[REASON].is_null())[TEXT].combine_chunks()


def _slice_at(reader: FragmentReader, fragment: Fragment, stratum: Stratum, inside: float) -> tuple[Slice, pa.Table] | None:
    """The slice at a distance of ``inside`` from the start of the fragment, or the last one."""
    found = None
    passed = 0
    for found in reader.slices(fragment):
        passed += stratum.size_of(found[0])
        if passed > inside:
            break
    return found
