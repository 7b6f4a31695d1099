"""Proof that an output is what its job says: every shard whole and right, every row of the input exactly once.

Small outputs are read by threads of this process, large ones by Ray tasks; either way at the speed of the storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from kosbert_ray.corpus.plan import Fragment
from kosbert_ray.corpus.slices import FragmentReader
from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.job.config import JobConfig
from kosbert_ray.job.resample import Reading, resample
from kosbert_ray.job.resolve import fragment_reader, fragments_of, job_of_output, open_corpus, open_output, reader_threads
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.verify import Promise, ShardCheck, check_cover, check_rejected, check_shard

LARGE_BYTES = 8 * 2**30  # from here on Ray reads
CHUNK = 16  # shards or fragments a Ray task

Item = TypeVar("Item")
Found = TypeVar("Found")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Verification:
    """What was looked at and what is wrong.

    Attributes:
        output: the output directory.
        problems: one line each; empty if all is right.
        shards, rows, rejected, bytes: what was read.
        seconds: how long it took.
        input_rows: rows of the input that were counted against the output, if it was.
        sampled: rows that were embedded again.
        agreement: the least cosine among them.
    """

    output: str
    problems: tuple[str, ...]
    shards: int
    rows: int
    rejected: int
    bytes: int
    seconds: float
    input_rows: int | None = None
    sampled: int = 0
    agreement: float = 1.0


def verify(config: JobConfig, sample: int, say: Say) -> Verification:
    """Reads all of an output and holds it against its job and, if ``input.path`` is given, against its input.

    Args:
        config: ``output.path`` says where, ``input.path`` (if any) what it was made of; ``storage``, ``encoder`` and
            ``ray`` apply, all else is the job's own.
        sample: how many rows to embed again and compare.
        say: takes a line for the user.

    Raises:
        InputError: there is no output of ours, or a sample is asked for and the texts are nowhere to be had.
        StorageError: a store refuses.
    """
    started = time.perf_counter()
    if sample < 0:
        raise UsageError("--sample: a number of rows, 0 or more")
    output = open_output(config, patient=True)
    ledger = Ledger(output)
    job, said = job_of_output(config, ledger)
    promise = Promise.of(said)
    shards = ledger.shards()
    manifest = ledger.manifest()
    receipts = ledger.receipts()
    problems: list[str] = []
    if manifest is None:
        problems.append("_SUCCESS: missing; the output is not complete, run the job again")
    else:
        named = {receipt.shard: receipt for receipt in manifest if receipt.shard}
        receipts |= named
        problems += [
            f"{name}: missing, with {receipt.rows:,} rows of {receipt.file}"
            for name, receipt in named.items()
            if name not in shards
        ]
        problems += [f"{name}: not in the manifest: stale or a stranger" for name in shards if name not in named]

    reader = _reader(config, job) if config.input.path else None
    large = sum(shards.values()) > LARGE_BYTES or config.ray.address is not None
    with _Workers(config, large, reader_threads(output)) as workers:
        checks = workers.map(lambda name: check_shard(output, name, promise, receipts.get(name)), list(shards))
        problems += [f"{check.name}: {problem}" for check in checks for problem in check.problems]
        own = [check.receipt for check in checks if check.receipt and not check.problems]
        without_shard = [receipt for receipt in manifest or [] if not receipt.shard]
        problems += check_cover([*own, *without_shard])
        rejecting = [check.receipt for check in checks if check.receipt and check.receipt.rejected]
        problems += [problem for problem in workers.map(lambda item: check_rejected(output, item), rejecting) if problem]
        input_rows = None
        if reader:
            found, input_rows = _against_input(reader, checks, without_shard, promise.fingerprint, workers, say)
            problems += found
    agreement = 1.0
    if sample and own:
        found, agreement, sample = resample(job, output, own, promise.formats[0], reader, sample, say)
        problems += found
    return Verification(
        output=output.address,
        problems=tuple(dict.fromkeys(problems)),
        shards=len(checks),
        rows=sum(receipt.rows for receipt in own),
        rejected=sum(receipt.rejected for receipt in own),
        bytes=sum(check.size for check in checks),
        seconds=time.perf_counter() - started,
        input_rows=input_rows,
        sampled=sample if own else 0,
        agreement=agreement,
    )


class _Workers:
    """Threads of this process, or Ray tasks for what is large."""

    def __init__(self, config: JobConfig, ray: bool, threads: int) -> None:
        self._config, self._ray = config, ray
        self._threads = ThreadPoolExecutor(threads)

    def __enter__(self) -> _Workers:
        if self._ray:
            from kosbert_ray.job import cluster

            cluster.start(self._config.ray)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._ray:
            from kosbert_ray.job import cluster

            cluster.stop()

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """``function`` of each item, in order."""
        if not self._ray:
            return list(self._threads.map(function, items))
        import ray

        task: Any = ray.remote(lambda chunk: [function(item) for item in chunk])
        chunks = [task.remote(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
        return [found for chunk in ray.get(chunks) for found in chunk]


# -- against the input ---------------------------------------------------------------------------------------------


def _reader(config: JobConfig, job: JobConfig) -> Reading:
    asked = job.model_copy(update={"input": job.input.model_copy(update={"path": config.input.path})})
    corpus, columns = open_corpus(asked, patient=True)
    reader = fragment_reader(job, corpus.storage, columns)
    files = frozenset(file.name for file in corpus.files)
    failed = tuple(file.reason for file in corpus.failed)
    return Reading(reader, tuple(fragments_of(job, corpus)), files, failed)


def _against_input(
    reading: Reading,
    checks: Iterable[ShardCheck],
    without_shard: list[Receipt],
    fingerprint: str,
    workers: _Workers,
    say: Say,
) -> tuple[list[str], int]:
    """Problems, and the number of input rows: the input is cut and counted anew, slice by slice."""
    problems = list(reading.failed)
    planned = {fragment.id for fragment in reading.fragments}
    slices: dict[tuple[str, int], Receipt] = {}
    gone = set()
    for receipt in [*(check.receipt for check in checks if check.receipt), *without_shard]:
        slices[receipt.fragment, receipt.slice_index] = receipt
        if receipt.fragment not in planned and receipt.file in reading.files:
            problems.append(f"{receipt.shard}: stale, of {receipt.file} as it was before it changed")
        elif receipt.fragment not in planned:
            gone.add(receipt.file)
    if gone:
        say(f"{len(gone):,} files are gone from the input (the first: {min(gone)}); their shards were not held against it")
    counts = workers.map(lambda fragment: _count(reading.reader, fragment, fingerprint), reading.fragments)
    rows = 0
    for fragment, count in zip(reading.fragments, counts, strict=True):
        if isinstance(count, str):
            problems.append(count)
            continue
        missing = 0
        for index, (expected, shard) in enumerate(count):
            rows += expected
            there = slices.get((fragment.id, index))
            where = f"{fragment.file.name}, slice {fragment.index}-{index}"
            if there is None:
                missing += 1
            elif there.input_rows != expected:
                problems.append(f"{where}: of {there.input_rows:,} rows instead of the input's {expected:,}")
            elif there.shard != shard:
                problems.append(f"{there.shard}: should be called {shard}")
        if missing:
            problems.append(
                f"{fragment.file.name}, fragment {fragment.index}: {missing:,} of {len(count):,} slices missing"
            )
    return problems, rows


def _count(reader: FragmentReader, fragment: Fragment, fingerprint: str) -> list[tuple[int, str]] | str:
    """Rows and shard name of each slice of a fragment, or why it cannot be read."""
    try:
        return [
            (table.num_rows, piece.shard_name(fingerprint) if piece.rows else "")
            for piece, table in reader.slices(fragment)
        ]
    except KosbertError as error:
        return str(error)
