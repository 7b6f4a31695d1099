"""What the driver does with what becomes of slices: books them, shows them, and stops a run that is not worth its end."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import JobFailed, StorageError, TooManyRejected
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.run.notices import Notices
from kosbert_ray.shards.ledger import Committed, Ledger

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kosbert_ray.run.monitor.metrics import Metrics
    from kosbert_ray.run.stages.work import Outcome

MAX_FAILED = 100  # slices: with so many, it is not the slices


@dataclass(frozen=True)
class Books:
    """All places where a committed slice is noted.

    Attributes:
        config: the job.
        input_bytes: of the whole corpus.
        committed: what the output holds.
        ledger: its books.
        progress: what a person sees.
        notices: logs remarks of the encoders once.
    """

    config: JobConfig
    input_bytes: int
    committed: Committed
    ledger: Ledger
    progress: Progress
    notices: Notices

    def record_all(self, outcomes: Iterable[Outcome], metrics: Metrics, slice_finished: Callable[[], None]) -> None:
        """Notes outcomes until there are no more.

        Args:
            outcomes: of slices, as they come.
            metrics: told of each.
            slice_finished: called at each.

        Raises:
            JobFailed: some slices failed; all others are committed.
            TooManyRejected: more rows were rejected than may be.
        """
        failed: list[str] = []
        rejected = ""
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
                    self.require_few_rejected(rejected)
                if outcome.failed:
                    failed.append(outcome.failed)
                    metrics.failed()
                    log.error(outcome.failed, extra={"label": "failed"})
                    if len(failed) >= MAX_FAILED:
                        break
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one to tell
                self.ledger.flush()
            raise
        self.ledger.flush()
        if failed:
            others = "the run was stopped" if len(failed) >= MAX_FAILED else "all others are committed"
            raise JobFailed(f"{failed[0]} ({len(failed):,} slices failed, {others}); run the same command again for them")

    def require_few_rejected(self, first: str = "") -> None:
        """Stops a run whose rejected rows are too many already, even if there were no more of them.

        Args:
            first: the first rejected row's address and reason.

        Raises:
            TooManyRejected: they are.
        """
        totals = self.progress.totals
        seen, rows, rejected = totals.input_bytes, totals.input_rows, totals.rejected
        if not seen or seen >= self.input_bytes:
            return
        # How many rows there will be is told from the bytes: what is within a row of the limit is not beyond it.
        if rejected > math.ceil(self.config.rejected_allowed(rows * self.input_bytes / seen)):
            example = f"; the first of this run: {first}" if first else ""
            raise TooManyRejected(
                f"{rejected:,} of {rows:,} rows so far were rejected, too many for max_rejected="
                f"{self.config.max_rejected:g} even if no other is{example}. What is committed stays (the reasons are in "
                "_kosbert/rejected); mend the input or raise max_rejected, and run the same command again"
            )
