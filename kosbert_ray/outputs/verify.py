"""Verifies an output: every shard is intact and consistent with its job, and every row of the input is there once.

Shards are read at the speed of the storage, by threads of this process or by the mapper passed in.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.input_check import InputPlan, check_input, plan_input
from kosbert_ray.outputs.mapper import Mapper, ThreadMapper
from kosbert_ray.outputs.problems import REMEDIES, Problem
from kosbert_ray.outputs.reembed import reembed
from kosbert_ray.outputs.shard_check import Promise, ShardCheck, check_cover, check_rejected, check_shard
from kosbert_ray.shards.ledger import Committed
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

LARGE_BYTES = 8 * 2**30  # above this, a command verifies with Ray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verification:
    """The result of verifying an output.

    Attributes:
        output: the output directory.
        problems: empty for a sound output.
        shards: shards read.
        rows: rows with a vector in sound shards.
        rejected: rows rejected.
        bytes: bytes read.
        seconds: how long it took.
        input_rows: rows of the input that were counted; None without an input.
        sampled: rows embedded again.
        agreement: the smallest cosine between a sampled row's old and new vector, of all columns.
        agreements: the same for each column with vectors; empty without a sample.
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
    agreements: Mapping[str, float] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """Remedies for the problems, one per kind."""
        kinds = {problem.kind for problem in self.problems}
        return "; ".join(remedy for kind, remedy in REMEDIES.items() if kind in kinds)


def is_large(output: Output) -> bool:
    """Returns True if the output is worth reading with many machines."""
    return sum(output.files.values()) > LARGE_BYTES


def require_sample(sample: int) -> None:
    """Raises UsageError for a sample of fewer than 0 rows."""
    if sample < 0:
        raise UsageError("--sample: a number of rows, 0 or more")


def verify(
    output: Output,
    mapper: Mapper | None = None,
    *,
    input: str | PathLike[str] | None = None,
    sample: int = 0,
    seed: int = 0,
) -> Verification:
    """Reads the whole output and checks it against its job and, if one is given, against its input.

    Args:
        output: the output.
        mapper: what reads many shards at once; None for threads of this process.
        input: what the output was made of.
        sample: how many rows to embed again and compare.
        seed: of the sample.

    Raises:
        InputError: a sample is asked for, but the texts are not in the output and no input is given.
        StorageError: a store cannot be accessed.
    """
    started = time.perf_counter()
    require_sample(sample)
    mapper = mapper or ThreadMapper(reader_threads(output.storage))
    promise = Promise.of(output.record)
    problems: list[Problem] = []
    if not output.complete:
        text = "no _SUCCESS: the output is incomplete, or too many of its rows were rejected"
        problems.append(Problem("incomplete", text))
    listed = {receipt.shard: receipt for receipt in output.manifest or () if receipt.shard}
    receipts = output.ledger.receipts() | listed
    for notice in output.ledger.notices:
        log.info(f"{notice}; the next run of kosbert-ray embed recreates it")
    shards, missing = _find_shards(output, listed)
    problems += missing

    storage = output.storage  # functions for the mapper must not take the output with them
    checks = mapper.map(lambda name: check_shard(storage, name, promise, receipts.get(name)), shards)
    for check in checks:
        problems += _problems_of(check, receipts, None if output.manifest is None else listed)
    sound = [check.receipt for check in checks if check.receipt and not check.problems]
    slices = [*sound, *(receipt for receipt in output.manifest or () if not receipt.shard)]
    problems += [Problem("broken" if output.complete else "incomplete", gap) for gap in check_cover(slices)]
    rejecting = [check.receipt for check in checks if check.receipt and check.receipt.rejected]
    lost = mapper.map(lambda receipt: check_rejected(storage, receipt), rejecting)
    problems += [Problem("broken", problem) for problem in lost if problem]

    plan: InputPlan | None = None
    input_rows = None
    if input:
        held = Committed()
        for receipt in slices:
            held.add(receipt)
        try:
            plan = plan_input(output, os.fspath(input), held)
        except KosbertError as error:  # no such input, or other columns
            problems.append(Problem("input", str(error)))
            sample = 0
        else:
            found, input_rows = check_input(plan, held, output.record.digest, mapper)
            problems += found
    agreements: dict[str, float] = {}
    sampled = 0
    if sample and sound:
        wrong, agreements, sampled = reembed(output, sound, plan, sample, seed)
        problems += [Problem("broken", problem) for problem in wrong]
    return Verification(
        output=output.storage.address,
        problems=tuple(dict.fromkeys(problems)),
        shards=len(checks),
        rows=sum(receipt.rows for receipt in sound),
        rejected=sum(receipt.rejected for receipt in sound),
        bytes=sum(check.size for check in checks),
        seconds=time.perf_counter() - started,
        input_rows=input_rows,
        sampled=sampled,
        agreement=min(agreements.values(), default=1.0),
        agreements=agreements,
    )


def _find_shards(output: Output, listed: Mapping[str, Receipt]) -> tuple[list[str], list[Problem]]:
    """Returns every Parquet file in the folder, and a problem for each shard of the manifest that is missing.

    Retired shards are left out: tables may name them, but the output does not.
    A store's listing may lag behind its files, so shards that it lacks are looked up one by one.
    """
    unlisted = [name for name in listed if name not in output.files]
    missing = dict.fromkeys(output.storage.missing(unlisted))
    problems = [
        Problem("broken", f"{name}: missing, with {plural(listed[name].rows, 'row')} of {listed[name].file}")
        for name in missing
    ]
    retired = output.ledger.publications.retired.difference(listed)
    return [
        *(name for name in output.files if name not in retired),
        *(name for name in unlisted if name not in missing),
    ], problems


def _problems_of(
    check: ShardCheck, receipts: Mapping[str, Receipt], listed: Mapping[str, Receipt] | None
) -> Sequence[Problem]:
    """Returns the problems of one file; ``listed`` are the shards of the manifest, None if there is none."""
    kind = "broken" if check.name in receipts or check.of_this_job else "foreign"
    if not check.problems and listed is not None and check.name not in listed:
        return [Problem("stale", f"{check.name}: not in the manifest (stale, or of an interrupted run)")]
    return [Problem(kind, f"{check.name}: {problem}") for problem in check.problems]
