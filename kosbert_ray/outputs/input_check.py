"""Checks an output against its input: the input is split into slices again, and each slice's rows are counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kosbert_ray.corpus.fragments import Fragment, is_current, slice_name
from kosbert_ray.corpus.identity import FileHashes
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.errors import KosbertError
from kosbert_ray.job import Job
from kosbert_ray.outputs.mapper import Mapper
from kosbert_ray.outputs.problems import Problem
from kosbert_ray.shards.ledger import Committed
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.totals import Totals
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

log = logging.getLogger(__name__)

Counts = list[tuple[int, str]]  # rows and shard name of each slice of a fragment


@dataclass(frozen=True)
class InputPlan:
    """An input as the output's job reads it.

    Attributes:
        reader: reads its fragments.
        fragments: what is read in one pass each.
        files: names of its files.
        failed: for each file that cannot be read, the reason.
    """

    reader: FragmentReader
    fragments: tuple[Fragment, ...]
    files: frozenset[str]
    failed: tuple[str, ...] = ()


def plan_input(output: Output, address: str, held: Committed) -> InputPlan:
    """Lists an input and plans how to read it as the output's job did.

    Args:
        output: the output.
        address: the input.
        held: the slices of the output, which say how each file was split.

    Raises:
        KosbertError: the input cannot be listed, or none of its files has the job's columns.
    """
    job = output.job
    asked = job.model_copy(update={"input": job.input.model_copy(update={"path": address})})
    types = output.record.kept_types(output.storage, output.files)
    found = Job.resolve(asked, retry=True, settled=types)
    if skipped := found.corpus.ignored_line():
        log.info(skipped)
    hashes = FileHashes(output.storage, output.ledger.run)
    found = replace(found, corpus=hashes.settle(found.corpus, held.versions()).corpus)
    return InputPlan(
        found.reader(),
        tuple(found.fragments_left(held, output.record.fingerprint)),
        frozenset(file.name for file in found.corpus.files),
        tuple(file.reason for file in found.corpus.failed),
    )


def check_input(plan: InputPlan, held: Committed, digest: str, mapper: Mapper) -> tuple[list[Problem], int]:
    """Compares an output's slices with its input.

    Args:
        plan: the input.
        held: the slices of the output.
        digest: of the output's job.
        mapper: what reads many fragments at once.

    Returns:
        The problems, and the number of rows in the input.
    """
    files = set(held.versions())
    if files and not files & plan.files:
        where = plan.reader.storage.address
        return [
            Problem("input", f"{where}: none of the {plural(len(files), 'file')} of this output is in it ({min(files)}, …)")
        ], 0
    problems = [Problem("unreadable", reason) for reason in plan.failed] + _stale(plan, held)
    older: list[Fragment] = []
    current: list[Fragment] = []
    for item in plan.fragments:
        (older if held.complete(item.id) and not is_current(item.cut) else current).append(item)
    if older:
        names = sorted({item.file.name for item in older})
        log.info(
            f"{plural(len(names), 'file', 'were')} read by an earlier version (the first: "
            f"{names[0]}); their slices are complete and "
            "are not counted again"
        )
    rows = Totals.of(held.receipts(item.id for item in older)).input_rows
    reader = plan.reader
    for fragment, counts in zip(current, mapper.map(lambda item: _count(reader, item, digest), current), strict=True):
        if isinstance(counts, str):
            problems.append(Problem("input", counts))
        else:
            problems += _compare(fragment, counts, held.by_fragment.get(fragment.id, {}))
            rows += sum(expected for expected, _ in counts)
    return problems, rows


def _stale(plan: InputPlan, held: Committed) -> list[Problem]:
    """Returns a problem for each slice of a file that has changed; logs how many files were removed from the input."""
    planned = {fragment.id for fragment in plan.fragments}
    problems = []
    removed = set()
    for receipt in held.all():
        if receipt.fragment in planned:
            continue
        if receipt.file in plan.files:
            text = f"{receipt.shard or receipt.file}: stale, of {receipt.file} as it was before it changed"
            problems.append(Problem("stale", text))
        else:
            removed.add(receipt.file)
    if removed:
        log.info(
            f"{plural(len(removed), 'file', 'are')} no longer in the input (the first: "
            f"{min(removed)}); skipped their shards"
        )
    return problems


def _compare(fragment: Fragment, counts: Counts, slices: dict[int, Receipt]) -> list[Problem]:
    """Compares the slices of a fragment with the rows and names that the input gives."""
    problems = []
    missing = 0
    for index, (expected, shard) in enumerate(counts):
        where = slice_name(fragment.file.name, fragment.index, index)
        receipt = slices.get(index)
        if receipt is None:
            missing += 1
        elif receipt.input_rows != expected:
            text = f"{where}: of {plural(receipt.input_rows, 'row')} instead of the input's {expected:,}"
            problems.append(Problem("broken", text))
        elif receipt.shard != shard:
            problems.append(Problem("broken", f"{receipt.shard}: should be called {shard}"))
    if missing:
        text = f"{fragment.file.name}, fragment {fragment.index}: {missing:,} of {plural(len(counts), 'slice')} missing"
        problems.append(Problem("incomplete", text))
    return problems


def _count(reader: FragmentReader, fragment: Fragment, digest: str) -> Counts | str:
    """Counts the rows of each slice of a fragment and names its shard; or says why the fragment cannot be read."""
    try:
        return [
            (table.num_rows, piece.shard_name(digest) if piece.rows else "") for piece, table in reader.slices(fragment)
        ]
    except KosbertError as error:
        return str(error)
