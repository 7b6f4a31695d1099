"""Compares two outputs: the rows of the input they have in common, and how far their models agree on these rows.

A row is identified by its input file, that file's version, and its number among the file's rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.agreement import Agreement, agreement
from kosbert_ray.errors import UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.sample import Rows, concatenated, draw, taken
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.vectors import read_blocks
from kosbert_ray.vectors.kinds import MULTI_VECTOR, Kind
from kosbert_ray.vectors.similarity import COSINES, PAIRS

MAX_SHARDS = 64  # shards of the first output to sample from
MIN_ROWS, MAX_ROWS = 3, 10_000  # of the sample: each is compared with each
MAX_TOKEN_VECTORS = 2**15  # of the sample

Pair = tuple[Kind, Kind]


@dataclass(frozen=True)
class Diff:
    """Two outputs compared. A pair of values is that of the first output and that of the second.

    Attributes:
        addresses: where they are.
        models: names of the models.
        dimensions: of the vectors, by kind.
        rows: rows with a vector.
        common: rows that both have.
        only: rows that only one has.
        unlike: files in both whose versions, chunks or rejected rows differ.
        agreements: of the models, on a sample of the common rows, by kind of vectors: the kinds that both have or, if
            there is none, the first of each ("dense/sparse"). Empty if there are too few rows.
    """

    addresses: tuple[str, str]
    models: tuple[str, str]
    dimensions: tuple[Mapping[Kind, int], Mapping[Kind, int]]
    rows: tuple[int, int]
    common: int
    only: tuple[int, int]
    unlike: tuple[str, ...]
    agreements: Mapping[str, Agreement]


class _Side:
    """One of the outputs, by input file."""

    def __init__(self, output: Output) -> None:
        output.require_complete()
        self.output = output
        # Without the policy: chunk and late cut the same chunks.
        self.chunks = output.record.fingerprint["long_text"].partition(" ")[2] if output.job.chunked else ""
        self.files: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in output.receipts:
            self.files[receipt.file].append(receipt)

    def version(self, file: str) -> tuple[object, ...]:
        """Returns what must be equal in both outputs for a row number to mean the same row of the file."""
        receipts = self.files[file]
        rejected = [receipt for receipt in receipts if receipt.rejected]
        if not rejected:
            return (receipts[0].version, self.chunks)
        places = [read_rejected(self.output.storage, receipt.shard).to_pylist() for receipt in rejected]
        addresses = sorted((row["row"] or 0, row["byte_offset"] or 0) for rows in places for row in rows)
        return (receipts[0].version, self.chunks, self.output.nullable, *addresses)

    def count(self, receipt: Receipt) -> int:
        """Returns the number of rows in a shard."""
        return receipt.shard_rows(self.output.nullable)

    def rows(self, file: str) -> int:
        """Returns the number of a file's rows that have a vector."""
        return sum(receipt.rows for receipt in self.files[file])

    def starts(self, file: str) -> Rows:
        """Returns where each of a file's shards starts among its rows, and the number of rows: int64 ``[shards + 1]``."""
        counts = [self.count(receipt) for receipt in self.files[file]]
        return np.concatenate(([0], np.cumsum(np.array(counts, np.int64))))

    def sample(self, files: list[str], n: int) -> list[tuple[str, Rows]]:
        """Draws rows of files: each file's row numbers, ascending. The same rows are drawn each time."""
        slices = [(file, number) for file in files for number in range(len(self.files[file]))]
        drawn = draw([self.count(self.files[file][number]) for file, number in slices], n, max_groups=MAX_SHARDS)
        rows: dict[str, list[Rows]] = defaultdict(list)
        for place, chosen in drawn.items():
            file, number = slices[place]
            rows[file].append(chosen + self.starts(file)[number])
        return [(file, np.concatenate(parts)) for file, parts in rows.items()]

    def row_tokens(self, files: list[str]) -> float:
        """Returns the mean number of tokens in a row of files."""
        receipts = [receipt for file in files for receipt in self.files[file]]
        return sum(receipt.tokens for receipt in receipts) / max(1, sum(receipt.rows for receipt in receipts))

    def vectors(self, asked: list[tuple[str, Rows]], kind: Kind) -> tuple[Any, npt.NDArray[np.bool_]]:
        """Reads rows of files.

        Returns:
            The vectors of the rows that have one, in their order and in the form of their kind, and which these are, bool
            ``[n]``.
        """
        places: dict[str, list[tuple[Rows, Rows]]] = defaultdict(list)
        total = 0
        for file, rows in asked:
            starts = self.starts(file)
            slice_of = np.searchsorted(starts, rows, side="right") - 1
            for number in np.unique(slice_of).tolist():
                chosen = np.flatnonzero(slice_of == number)
                places[self.files[file][number].shard].append((chosen + total, rows[chosen] - starts[number]))
            total += len(rows)
        item = self.output.kind_format(kind)

        def read(shard: str) -> list[tuple[Rows, Any]]:
            targets, numbers = (np.concatenate(parts) for parts in zip(*places[shard], strict=True))
            found = []
            for block, rows in read_blocks(self.output.storage, shard, item, np.unique(numbers)):
                here = np.isin(numbers, rows)
                found.append((targets[here], taken(block, np.searchsorted(rows, numbers[here]))))
            return found

        with ThreadPoolExecutor(reader_threads(self.output.storage)) as pool:
            targets, parts = zip(*(part for found in pool.map(read, places) for part in found), strict=True)
        order = np.concatenate(targets)
        has = np.zeros(total, bool)
        has[order] = True
        return taken(concatenated(parts), np.argsort(order)), has


def diff(first: Output, second: Output, sample: int, k: int) -> Diff:
    """Compares two outputs.

    Args:
        first: one output.
        second: the other.
        sample: how many common rows to compare the models on.
        k: neighbours of each row to compare.

    Raises:
        InputError: an output is not complete.
        StorageError: a shard is missing or cannot be read.
    """
    if not MIN_ROWS <= sample <= MAX_ROWS or k < 1:
        raise UsageError(f"--sample: from {MIN_ROWS} to {MAX_ROWS:,} rows, and --neighbours: at least 1")
    one, other = _Side(first), _Side(second)
    both = sorted(one.files.keys() & other.files.keys())
    shared = [file for file in both if one.version(file) == other.version(file) and one.rows(file) == other.rows(file)]
    common = sum(one.rows(file) for file in shared)
    rows = first.totals.rows, second.totals.rows
    return Diff(
        addresses=(first.storage.address, second.storage.address),
        models=(first.job.model.name, second.job.model.name),
        dimensions=(_dimensions(first), _dimensions(second)),
        rows=rows,
        common=common,
        only=(rows[0] - common, rows[1] - common),
        unlike=tuple(sorted({*both} - {*shared})),
        agreements=_agreements(one, other, shared, sample, k),
    )


def _dimensions(output: Output) -> dict[Kind, int]:
    return {kind: output.kind_format(kind).dimension for kind in output.kinds}


def _agreements(one: _Side, other: _Side, files: list[str], sample: int, k: int) -> dict[str, Agreement]:
    """Compares the vectors of a sample of some files' rows, by kind; see :attr:`Diff.agreements`."""
    kinds = one.output.kinds, other.output.kinds
    pairs: list[Pair] = [(kind, kind) for kind in kinds[0] if kind in kinds[1]] or [(kinds[0][0], kinds[1][0])]
    found = {}
    for pair in pairs:
        sides = list(zip((one, other), pair, strict=True))
        tokens = max((side.row_tokens(files) for side, kind in sides if kind == MULTI_VECTOR), default=0.0)
        count = min(sample, max(MIN_ROWS, int(MAX_TOKEN_VECTORS / tokens))) if tokens else sample
        asked = one.sample(files, count)
        if not asked:
            continue
        vectors, has = zip(*(side.vectors(asked, kind) for side, kind in sides), strict=True)
        both = has[0] & has[1]
        if both.sum() < MIN_ROWS:
            continue
        common = [taken(each, np.flatnonzero(both[own])) for each, own in zip(vectors, has, strict=True)]
        alike = pair[0] == pair[1] and len({side.output.kind_format(kind).dimension for side, kind in sides}) == 1
        cosine = float(COSINES[pair[0]](*common).mean()) if alike else None
        first, second = (PAIRS[kind](each) for kind, each in zip(pair, common, strict=True))
        found["/".join(dict.fromkeys(pair))] = agreement(first, second, k, cosine)
    return found
