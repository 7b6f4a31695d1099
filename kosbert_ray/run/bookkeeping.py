"""Records slice results on the driver, reports progress, and stops the run early when too many rows are rejected."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import JobFailed, StorageError, TooManyRejected
from kosbert_ray.run.bounds import Bound, Bounds
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.run.notices import Notices
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import STAGES, Receipt
from kosbert_ray.units import plural

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import SliceMetrics
    from kosbert_ray.run.stages.work import Outcome

MAX_FAILED = 100  # after this many failed slices the cause is systemic, so stop


@dataclass(frozen=True)
class Books:
    """Every place where a committed slice is recorded.

    Attributes:
        config: the job.
        input_bytes: bytes of the whole corpus.
        committed: the committed slices.
        ledger: the output's ledger.
        progress: the live view.
        notices: logs remarks of the encoders once.
        bounds: when the run ends although slices are open.
    """

    config: JobConfig
    input_bytes: int
    committed: Committed
    ledger: Ledger
    progress: Progress
    notices: Notices
    bounds: Bounds

    def record_all(self, outcomes: Iterable[Outcome], metrics: SliceMetrics, slice_finished: Callable[[], None]) -> Bound:
        """Records outcomes until there are no more, or a bound is reached; returns that bound.

        Args:
            outcomes: results of slices, as they arrive.
            metrics: the run's metrics.
            slice_finished: called for each.

        Raises:
            JobFailed: some slices failed; all others are committed.
            TooManyRejected: more rows were rejected than may be.
        """
        failed: list[str] = []
        rejected = ""
        bound: Bound = ""
        try:
            for outcome in outcomes:
                slice_finished()
                rejected = rejected or outcome.rejected
                self.notices.info(*outcome.notices)
                if outcome.receipt:
                    self.committed.add(outcome.receipt)
                    self.ledger.add(outcome.receipt)
                    self.progress.add(outcome.receipt)
                    metrics.committed(outcome.receipt, self.progress.share)
                    if self.config.log_format == "json":
                        receipt = asdict(outcome.receipt)
                        log.info(f"committed: {receipt['shard'] or receipt['file']}", extra={"event": "slice", **receipt})
                    else:
                        log.debug(_committed(outcome.receipt))
                    self.require_few_rejected(rejected)
                if outcome.failed:
                    failed.append(outcome.failed)
                    metrics.failed()
                    log.error(outcome.failed, extra={"label": "failed"})
                    if len(failed) >= MAX_FAILED:
                        break
                if bound := self.bounds.reached(self.progress.totals.rows):
                    break
        except BaseException:
            with contextlib.suppress(StorageError):  # report the first error
                self.ledger.flush()
            raise
        self.ledger.flush()
        if failed:
            others = "the run was stopped" if len(failed) >= MAX_FAILED else "all others are committed"
            raise JobFailed(
                f"{failed[0]} ({plural(len(failed), 'slice')} failed, {others}); run the same command again to retry"
            )
        return bound

    def require_few_rejected(self, first: str = "") -> None:
        """Stops a run that has rejected too many rows already, even if no other row is rejected.

        Args:
            first: address and reason of the first rejected row.

        Raises:
            TooManyRejected: ``max_rejected`` cannot be met any more.
        """
        totals = self.progress.totals
        seen, rows, rejected = totals.input_bytes, totals.input_rows, totals.rejected
        if not seen or seen >= self.input_bytes:
            return
        # The final number of rows is extrapolated from bytes, so allow one row more than the limit.
        if rejected > math.ceil(self.config.rejected_allowed(rows * self.input_bytes / seen)):
            example = f"; the first of this run: {first}" if first else ""
            raise TooManyRejected(
                f"{rejected:,} of {plural(rows, 'row')} so far were rejected, more than max_rejected="
                f"{self.config.max_rejected:g} allows even if no other is{example}. Committed slices stay (reasons are in "
                "_kosbert/rejected); fix the input or raise max_rejected, and run the same command again"
            )


def _committed(receipt: Receipt) -> str:
    """Describes a committed slice."""
    seconds = ", ".join(f"{stage} {getattr(receipt, f'{stage}_seconds'):.2f}" for stage in STAGES)
    return (
        f"committed: {receipt.shard or receipt.file}: {plural(receipt.rows, 'row')}, {plural(receipt.tokens, 'token')} "
        f"(seconds: {seconds}; {receipt.device}, {receipt.precision})"
    )
