"""Proof that an output is what its job says: every shard whole and right, every row of the input exactly once.

Small outputs are read by threads of this process, large ones by Ray tasks; either way at the speed of the storage.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.fragments import Fragment, is_current
from kosbert_ray.corpus.identity import FileHashes
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.job import (
    Job,
    job_of_output,
    open_output,
    reader_threads,
)
from kosbert_ray.outputs.reembed import Reading, resample
from kosbert_ray.outputs.shard_check import Promise, check_cover, check_rejected, check_shard
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.totals import Totals
from kosbert_ray.stored import settled_types

LARGE_BYTES = 8 * 2**30  # from here on Ray reads
CHUNK = 16  # shards or fragments a Ray task

Item = TypeVar("Item")
Found = TypeVar("Found")
Say = Callable[[str], None]


# What is wrong with an output, by kind, and what to do about it.
ADVICE = {
    "incomplete": "run the same embed command again to complete it",
    "broken": "delete the broken files and run the same embed command again",
    "stale": "run the same embed command again, which replaces shards of changed files",
    "foreign": "move files that are not this job's out of the folder",
    "unreadable": "fix or remove the input files that cannot be read, and run the same embed command again",
    "input": "check that --input is what this output was made of",
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with an output: its kind, one of ``ADVICE``, and a line that names the file."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verification:
    """What was looked at and what is wrong.

    Attributes:
        output: the output directory.
        problems: empty if all is right.
        shards, rows, rejected, bytes: what was read.
        seconds: how long it took.
        input_rows: rows of the input that were counted against the output, if it was.
        sampled: rows that were embedded again.
        agreement: the least cosine among them.
    """

    output: str
    problems: tuple[Problem, ...]
    shards: int
    rows: int
    rejected: int
    bytes: int
    seconds: float
    input_rows: int | None = None
    sampled: int = 0
    agreement: float = 1.0

    @property
    def advice(self) -> str:
        """Remedies for the problems, one per kind."""
        kinds = {problem.kind for problem in self.problems}
        return "; ".join(advice for kind, advice in ADVICE.items() if kind in kinds)


def verify(config: JobConfig, sample: int, say: Say, seed: int = 0) -> Verification:
    """Reads all of an output and holds it against its job and, if ``input.path`` is given, against its input.

    Args:
        config: ``output.path`` says where, ``input.path`` (if any) what it was made of; ``storage``, ``encoder`` and
            ``ray`` apply, all else is the job's own.
        sample: how many rows to embed again and compare.
        say: takes a line for the user.
        seed: of the sample.

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
    for notice in ledger.notices:
        say(f"{notice}; the next run of kosbert-ray embed recreates it")
    problems: list[Problem] = []
    if manifest is None:
        problems.append(
            Problem("incomplete", "no _SUCCESS: the output is incomplete, or too many of its rows were rejected")
        )
    named = {receipt.shard: receipt for receipt in manifest or [] if receipt.shard}
    receipts |= named
    unlisted = [name for name in named if name not in shards]
    lost_shards = dict.fromkeys(output.missing(unlisted))
    shards |= {name: named[name].output_bytes for name in unlisted if name not in lost_shards}
    problems += [
        Problem("broken", f"{name}: missing, with {named[name].rows:,} rows of {named[name].file}") for name in lost_shards
    ]
    large = sum(shards.values()) > LARGE_BYTES or config.ray.address is not None
    with _Workers(config, large, reader_threads(output)) as workers:
        checks = workers.map(lambda name: check_shard(output, name, promise, receipts.get(name)), list(shards))
        for check in checks:
            kind = "broken" if check.name in receipts or check.of_this_job else "foreign"
            problems += [Problem(kind, f"{check.name}: {problem}") for problem in check.problems]
            if manifest is not None and check.name not in named and not check.problems:
                text = f"{check.name}: not in the manifest (stale, or of a run that did not end)"
                problems.append(Problem("stale", text))
        own = [check.receipt for check in checks if check.receipt and not check.problems]
        without_shard = [receipt for receipt in manifest or [] if not receipt.shard]
        gaps = check_cover([*own, *without_shard])
        problems += [Problem("broken" if manifest is not None else "incomplete", gap) for gap in gaps]
        rejecting = [check.receipt for check in checks if check.receipt and check.receipt.rejected]
        lost = workers.map(lambda item: check_rejected(output, item), rejecting)
        problems += [Problem("broken", problem) for problem in lost if problem]
        input_rows, reader = None, None
        if config.input.path:
            held = Committed()
            for receipt in [*own, *without_shard]:
                held.add(receipt)
            types = settled_types(said, output, shards)
            reader = _reader(config, job, said, held, FileHashes(output, ledger.run), types, say)
            found, input_rows = _against_input(reader, held, promise.fingerprint, workers, say)
            problems += found
    agreement = 1.0
    if sample and own:
        wrong, agreement, sample = resample(job, said, output, own, promise.formats[0], reader, sample, seed, say)
        problems += [Problem("broken", problem) for problem in wrong]
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
        with contextlib.ExitStack() as stack:
            stack.callback(self._threads.shutdown, cancel_futures=True)
            if self._ray:
                from kosbert_ray.run import ray_session

                stack.enter_context(ray_session.joined(self._config.ray))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def map(self, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """``function`` of each item, in order."""
        if not self._ray:
            return list(self._threads.map(function, items))
        import ray

        task: Any = ray.remote(lambda chunk: [function(item) for item in chunk])
        chunks = [task.remote(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
        return [found for chunk in ray.get(chunks) for found in chunk]


# -- against the input ---------------------------------------------------------------------------------------------


def _reader(
    config: JobConfig,
    job: JobConfig,
    said: Mapping[str, Any],
    held: Committed,
    hashes: FileHashes,
    types: pa.Schema | None,
    say: Say,
) -> Reading:
    asked = job.model_copy(update={"input": job.input.model_copy(update={"path": config.input.path})})
    found = Job.resolve(asked, patient=True, settled=types)
    if skipped := found.corpus.ignored_line():
        say(skipped)
    found = replace(found, corpus=hashes.settle(found.corpus, held.versions()).corpus)
    fragments = found.fragments_left(held, said.get("fingerprint", {}))
    files = frozenset(file.name for file in found.corpus.files)
    return Reading(found.reader(), tuple(fragments), files, tuple(file.reason for file in found.corpus.failed))


def _against_input(
    reading: Reading, held: Committed, fingerprint: str, workers: _Workers, say: Say
) -> tuple[list[Problem], int]:
    """Problems, and the number of input rows: the input is cut and counted again, slice by slice."""
    files = set(held.versions())
    where = reading.reader.storage.address
    if files and not files & reading.files:
        return [Problem("input", f"{where}: none of the {len(files):,} files of this output is in it ({min(files)}, …)")], 0
    problems = [Problem("unreadable", reason) for reason in reading.failed]
    planned = {fragment.id for fragment in reading.fragments}
    gone = set()
    for receipt in held.all():
        if receipt.fragment not in planned and receipt.file in reading.files:
            name = receipt.shard or receipt.file
            problems.append(Problem("stale", f"{name}: stale, of {receipt.file} as it was before it changed"))
        elif receipt.fragment not in planned:
            gone.add(receipt.file)
    if gone:
        say(f"{len(gone):,} files are gone from the input (the first: {min(gone)}); their shards were not compared")
    older: list[Fragment] = []
    counted: list[Fragment] = []
    for item in reading.fragments:
        (older if held.complete(item.id) and not is_current(item.cut) else counted).append(item)
    if older:
        names = sorted({item.file.name for item in older})
        say(
            f"{len(names):,} files were read by an earlier version (the first: {names[0]}); their slices are complete and "
            "are not cut again"
        )
    rows = Totals.of(held.receipts(item.id for item in older)).input_rows
    counts = workers.map(lambda fragment: _count(reading.reader, fragment, fingerprint), counted)
    for fragment, count in zip(counted, counts, strict=True):
        if isinstance(count, str):
            problems.append(Problem("input", count))
            continue
        missing = 0
        for index, (expected, shard) in enumerate(count):
            rows += expected
            there = held.by_fragment.get(fragment.id, {}).get(index)
            where = f"{fragment.file.name}, slice {fragment.index}-{index}"
            if there is None:
                missing += 1
            elif there.input_rows != expected:
                problems.append(
                    Problem("broken", f"{where}: of {there.input_rows:,} rows instead of the input's {expected:,}")
                )
            elif there.shard != shard:
                problems.append(Problem("broken", f"{there.shard}: should be called {shard}"))
        if missing:
            text = f"{fragment.file.name}, fragment {fragment.index}: {missing:,} of {len(count):,} slices missing"
            problems.append(Problem("incomplete", text))
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
