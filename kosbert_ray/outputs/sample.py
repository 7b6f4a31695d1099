"""Random rows of an output: the one sampler behind ``report``, ``diff``, ``verify`` and :meth:`Output.sample`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.job import reader_threads
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.vectors import read_blocks
from kosbert_ray.vectors.kinds import Kind

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Random rows of an output, in the order of its shards.

    Attributes:
        vectors: float32 ``[n, dimension]``; of another kind than dense, SparseVectors or TokenVectors of ``n`` rows. Or
            what :func:`sample_kinds` was asked to keep of them.
        table: the columns asked for, ``n`` rows.
        places: each shard drawn from and the row numbers in it, int64; ``n`` row numbers in all.
    """

    vectors: Any
    table: pa.Table
    places: tuple[tuple[str, Rows], ...]

    def __len__(self) -> int:
        return len(self.vectors)


def draw(counts: Sequence[int], n: int, seed: int = 0, max_groups: int | None = None) -> dict[int, Rows]:
    """Draws rows from groups of rows, such as shards. Every row of the groups considered is equally likely.

    Args:
        counts: the number of rows in each group.
        n: how many rows to draw; all of them if there are fewer.
        seed: the same seed draws the same rows.
        max_groups: draw from this many random groups only, so that few shards are read; None for all.

    Returns:
        For each group drawn from, in ascending order, its rows, ascending.
    """
    random = np.random.default_rng(seed)
    filled = np.flatnonzero(np.asarray(counts, np.int64))
    groups = np.sort(random.permutation(filled)[:max_groups])
    ends = np.cumsum(np.asarray(counts, np.int64)[groups])
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.sort(random.choice(total, min(n, total), replace=False)) if total else np.empty(0, np.int64)
    group_of = np.searchsorted(ends, drawn, side="right")
    return {
        int(groups[place]): drawn[group_of == place] - (ends[place] - counts[groups[place]])
        for place in np.unique(group_of).tolist()
    }


def sample(output: Output, n: int, seed: int, columns: Sequence[str], max_shards: int | None, kind: Kind) -> Sample:
    """Reads the rows behind :meth:`Output.sample`, whose arguments it takes."""
    return sample_kinds(output, n, seed, columns, max_shards, {kind: lambda vectors: vectors})[kind]


def sample_kinds(
    output: Output,
    n: int,
    seed: int,
    columns: Sequence[str],
    max_shards: int | None,
    keep: Mapping[Kind, Callable[[Any], Any]],
) -> dict[Kind, Sample]:
    """Reads the same rows' vectors of several kinds; see :meth:`Output.sample`.

    Args:
        output, n, seed, columns, max_shards: as there.
        keep: what to keep of each kind, from the vectors of a block's sampled rows in the form of the kind. The result
            is an array or has ``joined``, and is as long.

    Returns:
        A sample for each kind, whose ``vectors`` are what was kept.
    """
    receipts = [receipt for receipt in output.receipts if receipt.rows]
    drawn = draw([receipt.rows for receipt in receipts], n, seed, max_shards)
    items = {kind: output.kind_format(kind) for kind in keep}

    def read(group: int) -> tuple[dict[Kind, Any], pa.Table, Rows]:
        shard = receipts[group].shard
        vectors = {}
        for kind, item in items.items():  # a row has a vector of each kind or of none
            vectors[kind], rows = _vectors(output, shard, item, drawn[group], keep[kind])
        return vectors, output.rows(shard, rows, columns), rows

    with ThreadPoolExecutor(reader_threads(output.storage)) as pool:
        parts = list(pool.map(read, drawn))
    if not parts:
        table = pa.table({name: [] for name in columns})
        nothing = {kind: item.matrix(pa.array([], item.field().type))[0] for kind, item in items.items()}
        return {kind: Sample(keep[kind](vectors), table, ()) for kind, vectors in nothing.items()}
    vectors, tables, rows = zip(*parts, strict=True)
    table = pa.concat_tables(tables)
    places = tuple(zip((receipts[group].shard for group in drawn), rows, strict=True))
    return {kind: Sample(concatenated([part[kind] for part in vectors]), table, places) for kind in items}


def concatenated(parts: Sequence[Any]) -> Any:
    """Returns vectors of one kind, in the form of the kind, one part after another."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else parts[0].joined(parts[1:])


def taken(vectors: Any, rows: npt.NDArray[np.integer]) -> Any:
    """Returns some rows of vectors of one kind, in the form of the kind."""
    return vectors[rows] if isinstance(vectors, np.ndarray) else vectors.take(rows)


def _vectors(output: Output, shard: str, item: VectorFormat, chosen: Rows, keep: Callable[[Any], Any]) -> tuple[Any, Rows]:
    """Reads what to keep of a shard's vectors, and their row numbers; ``chosen`` counts only rows that have a vector."""
    vectors, rows, start = [], [], 0
    for block, numbers in read_blocks(output.storage, shard, item):
        inside = chosen[(chosen >= start) & (chosen < start + len(numbers))] - start
        vectors.append(keep(taken(block, inside)))
        rows.append(numbers[inside])
        start += len(numbers)
    return concatenated(vectors), np.concatenate(rows)
