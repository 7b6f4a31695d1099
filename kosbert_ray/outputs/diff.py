"""Compares two outputs: the rows of the input they have in common, and how far their models agree on these rows.

A row is identified by its input file, that file's version, and its number among the file's rows.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.agreement import Agreement, agreement
from kosbert_ray.errors import UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.output import Output
from kosbert_ray.outputs.sample import Rows, draw
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected

MAX_SHARDS = 64  # shards of the first output to sample from
MIN_ROWS = 3


@dataclass(frozen=True)
class Diff:
    """Two outputs compared. A pair of values is that of the first output and that of the second.

    Attributes:
        addresses: where they are.
        models: names of the models.
        dimensions: of the vectors.
        rows: rows with a vector.
        common: rows that both have.
        only: rows that only one has.
        unlike: files in both whose versions or rejected rows differ.
        agreement: of the models, on a sample of the common rows; None if there are too few.
    """

    addresses: tuple[str, str]
    models: tuple[str, str]
    dimensions: tuple[int, int]
    rows: tuple[int, int]
    common: int
    only: tuple[int, int]
    unlike: tuple[str, ...]
    agreement: Agreement | None


class _Side:
    """One of the outputs, by input file."""

    def __init__(self, output: Output) -> None:
        output.require_complete()
        self.output = output
        self.format = output.dense
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
        return (receipts[0].version, self.chunks, self.format.nullable, *addresses)

    def count(self, receipt: Receipt) -> int:
        """Returns the number of rows in a shard."""
        return receipt.shard_rows(self.format.nullable)

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

    def vectors(self, asked: list[tuple[str, Rows]]) -> npt.NDArray[np.float32]:
        """Reads rows of files: float32 ``[n, dimension]``, NaN for rows without a vector."""
        places: dict[str, list[tuple[Rows, Rows]]] = defaultdict(list)
        total = 0
        for file, rows in asked:
            starts = self.starts(file)
            slice_of = np.searchsorted(starts, rows, side="right") - 1
            for number in np.unique(slice_of).tolist():
                chosen = np.flatnonzero(slice_of == number)
                places[self.files[file][number].shard].append((chosen + total, rows[chosen] - starts[number]))
            total += len(rows)
        found = np.full((total, self.format.dimension), np.nan, np.float32)

        def read(shard: str) -> None:
            targets, numbers = (np.concatenate(parts) for parts in zip(*places[shard], strict=True))
            for block, rows in self.output.vectors(shard):
                here = np.isin(numbers, rows)
                found[targets[here]] = block[np.searchsorted(rows, numbers[here])]

        with ThreadPoolExecutor(reader_threads(self.output.storage)) as pool:
            list(pool.map(read, places))
        return found


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
    if sample < MIN_ROWS or k < 1:
        raise UsageError(f"--sample: at least {MIN_ROWS} rows, and --neighbours: at least 1")
    one, other = _Side(first), _Side(second)
    both = sorted(one.files.keys() & other.files.keys())
    shared = [file for file in both if one.version(file) == other.version(file) and one.rows(file) == other.rows(file)]
    common = sum(one.rows(file) for file in shared)
    asked = one.sample(shared, sample)
    found = None
    if asked:
        vectors = one.vectors(asked), other.vectors(asked)
        have = ~np.isnan(vectors[0]).any(1) & ~np.isnan(vectors[1]).any(1)
        if have.sum() >= MIN_ROWS:
            found = agreement(vectors[0][have], vectors[1][have], k)
    rows = first.totals.rows, second.totals.rows
    return Diff(
        addresses=(first.storage.address, second.storage.address),
        models=(first.job.model.name, second.job.model.name),
        dimensions=(one.format.dimension, other.format.dimension),
        rows=rows,
        common=common,
        only=(rows[0] - common, rows[1] - common),
        unlike=tuple(sorted({*both} - {*shared})),
        agreement=found,
    )
