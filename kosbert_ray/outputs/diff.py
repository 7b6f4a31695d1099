"""Two outputs held against each other: which rows of the input both have, and how far their models agree on these.

A row is known by its place: the file, in the same version, and which of the file's rows it is.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosbert_ray.analysis.agreement import Agreement, agreement
from kosbert_ray.config import JobConfig
from kosbert_ray.errors import UsageError
from kosbert_ray.job import job_of_output, open_output, reader_threads
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.vectors import read_vectors

MOST_SHARDS = 64  # of the first output, that a sample is taken of
LEAST_ROWS = 3

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Diff:
    """Two outputs, ``first`` and ``second``.

    Attributes:
        addresses: of both.
        models: of both.
        rows: with a vector, in each.
        common: rows that both have.
        only: rows that only one has, in each.
        unlike: files that both have, but in other versions or with other rows rejected.
        agreement: on a sample of the common rows; None if there are hardly any.
    """

    addresses: tuple[str, str]
    models: tuple[str, str]
    rows: tuple[int, int]
    common: int
    only: tuple[int, int]
    unlike: tuple[str, ...]
    agreement: Agreement | None


class _Side:
    """One of the outputs."""

    def __init__(self, config: JobConfig, path: str) -> None:
        config = config.model_copy(update={"output": config.output.model_copy(update={"path": path})})
        self.storage = open_output(config)
        ledger = Ledger(self.storage)
        job, said = job_of_output(config, ledger)
        manifest = ledger.complete_manifest()
        self.model = job.model.name
        self.chunks = said["fingerprint"]["long_text"] if job.long_text == "chunk" else ""
        self.format = EmbeddingFormat.of(said["fingerprint"])
        self.files: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in sorted(manifest, key=lambda item: (item.file, item.fragment_index, item.slice_index)):
            self.files[receipt.file].append(receipt)
        self.rows = sum(receipt.rows for receipt in manifest)

    def version(self, file: str) -> tuple[object, ...]:
        """What must be the same in both outputs for the file's rows to be known by their number."""
        receipts = self.files[file]
        rejected = [receipt for receipt in receipts if receipt.rejected]
        if not rejected:
            return (receipts[0].version, self.chunks)
        places = [read_rejected(self.storage, receipt.shard).to_pylist() for receipt in rejected]
        addresses = sorted((row["row"] or 0, row["byte_offset"] or 0) for rows in places for row in rows)
        return (receipts[0].version, self.chunks, self.format.nullable, *addresses)

    def count(self, receipt: Receipt) -> int:
        """Rows of a shard."""
        return receipt.rows + (receipt.rejected if self.format.nullable else 0)

    def of_file(self, file: str) -> int:
        """Rows with a vector of a file."""
        return sum(receipt.rows for receipt in self.files[file])

    def place(self, file: str, rows: Places) -> list[tuple[str, Places, Places]]:
        """Where rows of a file are: (shard, which of ``rows``, their numbers in the shard)."""
        receipts = [receipt for receipt in self.files[file] if receipt.shard]
        starts = np.concatenate(([0], np.cumsum([self.count(receipt) for receipt in receipts])))
        which = np.searchsorted(starts, rows, side="right") - 1
        return [
            (receipts[index].shard, chosen, rows[chosen] - starts[index])
            for index in np.unique(which).tolist()
            for chosen in [np.flatnonzero(which == index)]
        ]

    def vectors(self, asked: list[tuple[str, Places]]) -> npt.NDArray[np.float32]:
        """float32 ``[n, dimension]`` of rows of files; NaN where a row has none."""
        places: dict[str, list[tuple[Places, Places]]] = defaultdict(list)
        start = 0
        for file, rows in asked:
            for shard, chosen, numbers in self.place(file, rows):
                places[shard].append((chosen + start, numbers))
            start += len(rows)
        found = np.full((start, self.format.dimension), np.nan, np.float32)

        def read(shard: str) -> None:
            targets, numbers = (np.concatenate(parts) for parts in zip(*places[shard], strict=True))
            for block, rows in read_vectors(self.storage, shard, self.format):
                there = np.isin(numbers, rows)
                found[targets[there]] = block[np.searchsorted(rows, numbers[there])]

        with ThreadPoolExecutor(reader_threads(self.storage)) as pool:
            list(pool.map(read, places))
        return found


def diff(config: JobConfig, first: str, second: str, sample: int, k: int) -> Diff:
    """Holds two outputs against each other.

    Args:
        config: ``storage`` applies.
        first: one output.
        second: the other.
        sample: how many common rows to compare the models on.
        k: neighbours of each to look at.

    Raises:
        InputError: one of them is no output of ours, or not complete.
        StorageError: a shard cannot be read.
    """
    if sample < LEAST_ROWS or k < 1:
        raise UsageError(f"--sample: at least {LEAST_ROWS} rows, and --neighbours: at least 1")
    sides = _Side(config, first), _Side(config, second)
    one, other = sides
    both = sorted(one.files.keys() & other.files.keys())
    shared = [
        file for file in both if one.version(file) == other.version(file) and one.of_file(file) == other.of_file(file)
    ]
    common = sum(one.of_file(file) for file in shared)
    asked = _sample(one, shared, sample)
    found = None
    if asked:
        vectors = one.vectors(asked), other.vectors(asked)
        there = ~np.isnan(vectors[0]).any(1) & ~np.isnan(vectors[1]).any(1)
        if there.sum() >= LEAST_ROWS:
            found = agreement(vectors[0][there], vectors[1][there], k)
    return Diff(
        addresses=(one.storage.address, other.storage.address),
        models=(one.model, other.model),
        rows=(one.rows, other.rows),
        common=common,
        only=(one.rows - common, other.rows - common),
        unlike=tuple(sorted({*both} - {*shared})),
        agreement=found,
    )


def _sample(side: _Side, files: list[str], sample: int) -> list[tuple[str, Places]]:
    """Rows of some slices of these files, the same each time: of each file, in ascending order."""
    slices = [(file, receipt) for file in files for receipt in side.files[file] if receipt.rows]
    if not slices:
        return []
    random = np.random.default_rng(0)
    picked = random.permutation(len(slices))[:MOST_SHARDS]
    counts = np.array([side.count(slices[index][1]) for index in picked])
    # Each row of the picked slices is as likely as any other.
    rows = np.sort(random.permutation(int(counts.sum()))[:sample])
    ends = np.cumsum(counts)
    chosen: dict[str, list[Places]] = defaultdict(list)
    for index, end, count in zip(picked.tolist(), ends.tolist(), counts.tolist(), strict=True):
        file, receipt = slices[index]
        before = sum(side.count(item) for item in side.files[file][: side.files[file].index(receipt)])
        chosen[file].append(rows[(rows >= end - count) & (rows < end)] - (end - count) + before)
    return [(file, np.sort(np.concatenate(parts))) for file, parts in chosen.items()]
