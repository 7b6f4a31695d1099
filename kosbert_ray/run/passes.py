"""One pass over the slices that are not committed yet."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.job import Job, token_pooling
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.bookkeeping import Books
from kosbert_ray.run.bounds import Bound, Bounds
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.run.notices import Notices
from kosbert_ray.run.older_vectors import OlderVectors
from kosbert_ray.run.output_state import OutputState
from kosbert_ray.shards.vector_types import Ranges

if TYPE_CHECKING:
    from kosbert_ray.run.corpus_dedup import Shared
    from kosbert_ray.run.executors.base import EncoderPool, Executor, Pending

BOARD_SECONDS = 1.0  # how long the live view waits for the board


@dataclass(frozen=True)
class Pass:
    """Everything that a pass needs.

    Attributes:
        job: the job.
        model: its model, loadable on every node.
        tokenizer: the model's.
        ranges: int8's.
        output: the output.
        progress: the live view.
        notices: logs remarks.
        executor: runs the stages.
        pool: the encoders.
        strict_engine: whether the user named the engine.
        bounds: when it ends although slices are open.
        older: vectors of an older output.
    """

    job: Job
    model: PreparedModel
    tokenizer: Tokenizer
    ranges: Ranges
    output: OutputState
    progress: Progress
    notices: Notices
    executor: Executor
    pool: EncoderPool
    strict_engine: bool
    bounds: Bounds
    older: OlderVectors | None

    def run(self, pending: Pending, shared: Shared | None) -> Bound:
        """Encodes open slices; returns the bound that ended it, if one did.

        Args:
            pending: the open slices.
            shared: texts that occur in several slices, with their vectors.

        Raises:
            JobFailed: some slices failed; all others are committed.
            TooManyRejected: more rows were rejected than ``max_rejected`` allows.
            DeviceBroken: the local executor's GPU no longer works.
        """
        from kosbert_ray.run.monitor.watchdog import Watchdog
        from kosbert_ray.run.stages.work import Work

        job, executor, pool, output = self.job, self.executor, self.pool, self.output
        board = executor.start_board()
        work = Work(
            reader=job.reader(retry=True),
            model=self.model,
            long_text=job.long_text,
            keep_address=job.config.output.address,
            made_columns=tuple(job.config.made_columns()),
            encoder=pool.encoder_options(job.config.encoder),
            strict_engine=self.strict_engine,
            encoders_per_node=pool.per_node,
            output=output.ledger.storage,
            formats=job.formats(self.ranges),
            token_pooling=token_pooling(job.config, job.spec),
            field_ids=output.has_field_ids,
            rejected_text=job.config.output.rejected_text,
            on_bad_row=job.config.on_bad_row,
            fingerprint=output.digest,
            board=board,
            shared=shared.vectors if shared else None,
            older=self.older,
            bundle=pool.bundle_limits(job.spec, job.most_bytes),
            bundle_input_bytes=pool.bundle_input_bytes(sum(item.input_bytes for item, _ in pending)),
        )
        job.long_text.check(self.tokenizer)
        metrics = executor.slice_metrics(board, pool, output.ledger.storage.address, self.progress.recent)
        self.progress.watch(lambda: board.snapshot(BOARD_SECONDS))
        books = Books(
            job.config, job.corpus.size, output.committed, output.ledger, self.progress, self.notices, self.bounds
        )
        books.require_few_rejected()
        texts = shared.texts if shared else None
        with (
            self.progress,
            Watchdog(board, partial(executor.describe_resources, pool), job.config.stall_timeout) as watchdog,
            contextlib.closing(executor.outcomes(work, self.tokenizer, texts, pending, pool)) as outcomes,
        ):
            return books.record_all(outcomes, metrics, watchdog.slice_finished)
