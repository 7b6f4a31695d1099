"""Shared by all stages: the job, the outcome of a slice, and how a stage treats slices that fail.

A row that cannot be embedded is rejected with a reason. A slice that fails is dropped and reported; the others continue.
Only what would fail every slice (the output refuses, the model is not the job's) raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from kosbert_ray.config import OnBadRow
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import InputChanged, KosbertError, described
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.monitor.board import MAX_ATTEMPTS, Board
from kosbert_ray.run.older_vectors import OlderVectors
from kosbert_ray.run.shared_vectors import SharedVectors
from kosbert_ray.run.slice_row import SliceRow
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.storage import Storage
from kosbert_ray.vectors.kinds import Kind
from kosbert_ray.vectors.token_pooling import TokenPooling

MAX_BUNDLED = 64  # slices in a row


@dataclass(frozen=True)
class Work:
    """Everything that the stages need; small, and the same for every slice.

    Attributes:
        reader: reads fragments.
        model: the prepared model.
        long_text: how to treat texts longer than the model takes.
        keep_address: whether the output has columns with the place of each row in the input.
        made_columns: columns of the output that are made while texts are tokenized.
        encoder: how to compute.
        strict_engine: whether the user named the engine; otherwise torch may replace it.
        encoders_per_node: most encoders on one node.
        output: the output directory.
        formats: how vectors are stored, one for each column.
        token_pooling: how the token vectors of a text are pooled, if they are.
        field_ids: whether the columns have field ids.
        on_bad_row: what to do with rows that cannot be embedded.
        rejected_text: whether the texts of rejected rows are kept.
        fingerprint: digest of the job.
        board: tracks what workers are doing.
        shared: vectors of texts that occur in several slices.
        older: vectors of an older output.
        bundle: the most rows and bytes of text in slices that travel together.
        bundle_input_bytes: the most bytes of stored input in them, so that every encoder gets its share.
    """

    reader: FragmentReader
    model: PreparedModel
    long_text: LongText
    keep_address: bool
    made_columns: tuple[str, ...]
    encoder: EncoderOptions
    strict_engine: bool
    encoders_per_node: int
    output: Storage
    formats: tuple[VectorFormat, ...]
    token_pooling: TokenPooling | None
    field_ids: bool
    on_bad_row: OnBadRow
    rejected_text: bool
    fingerprint: str
    board: Board
    shared: SharedVectors | None
    older: OlderVectors | None
    bundle: Limits
    bundle_input_bytes: int

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors, in the order of their columns."""
        return tuple(dict.fromkeys(item.kind for item in self.formats))


@dataclass(frozen=True)
class Outcome:
    """The result of one slice, as the driver receives it.

    Attributes:
        receipt: the committed slice; None if it was dropped.
        failed: why it was dropped: one line that starts with its address.
        changed: name of its input file, if it was dropped because that file changed.
        rejected: address and reason of its first rejected row.
        notices: remarks for the user.
    """

    receipt: Receipt | None = None
    failed: str = ""
    changed: str = ""
    rejected: str = ""
    notices: tuple[str, ...] = ()


Done = TypeVar("Done")
Do = Callable[[SliceRow], Done]


def run_stage(name: str, slices: Sequence[SliceRow], work: Work, do: Do[Done], threads: int = 1) -> list[Done | SliceRow]:
    """Runs a stage on slices that travel together. Slices that fail, or were dropped before, are passed on as they are.

    Args:
        name: of the stage: "tokenize", "encode" or "write".
        slices: the slices.
        work: the job.
        do: processes one slice.
        threads: how many slices to process at once.
    """
    if len(slices) == 1:
        return [_counted(name, slices[0], work, do)]
    first = next((item.address for item in slices if not item.dropped), "")
    with work.board.working_on(name, f"{first} and {len(slices) - 1} more") as attempt:
        # After a bundle has killed a worker, its slices are counted one by one to find the culprit.
        if attempt > 1:
            return [_counted(name, item, work, do) for item in slices]
        if threads == 1:
            return [_guarded(name, item, work, do) for item in slices]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda item: _guarded(name, item, work, do), slices))


def _guarded(name: str, row: SliceRow, _work: Work, do: Do[Done]) -> Done | SliceRow:
    """Runs a stage on one slice, and drops the slice if anything unforeseen happens."""
    if row.dropped:
        return row
    try:
        return do(row)
    except InputChanged:  # the writer reads the texts of rejected rows again
        assert row.receipt is not None
        return drop(row, changed=row.receipt.file)
    except KosbertError:
        raise
    except Exception as error:
        return drop(row, failed=f"{row.address}: stage {name} failed ({described(error)})")


def _counted(name: str, row: SliceRow, work: Work, do: Do[Done]) -> Done | SliceRow:
    """Does the same as :func:`_guarded`, and drops a slice that has killed too many workers."""
    if row.dropped:
        return row
    with work.board.working_on(name, row.address) as attempt:
        if attempt > MAX_ATTEMPTS:
            return drop(row, failed=f"{row.address}: killed {MAX_ATTEMPTS} workers in stage {name}")
        return _guarded(name, row, work, do)


def drop(row: SliceRow, failed: str = "", changed: str = "") -> SliceRow:
    """A slice without its columns: only the reason travels on."""
    return replace(row, receipt=None, failed=failed, changed=changed, notices=(), columns={})
