"""A run from its config to its last line: plan, subtract what is committed, run the rest, finalise."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from kosbert_ray.corpus.plan import Fragment
from kosbert_ray.corpus.slices import FragmentReader
from kosbert_ray.encoder.spec import ModelSpec, sha256
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import (
    FingerprintMismatch,
    InputError,
    JobFailed,
    KosbertError,
    StorageError,
)
from kosbert_ray.job.config import JobConfig
from kosbert_ray.job.finish import Leftover, finish, leftover
from kosbert_ray.job.on_finish import Ended, notify
from kosbert_ray.job.outcomes import MAX_FAILED, Books
from kosbert_ray.job.preview import Preview
from kosbert_ray.job.progress import Progress, Totals, duration
from kosbert_ray.job.resolve import (
    embedding_formats,
    encoder_options,
    fingerprint_of,
    fragment_reader,
    fragments_of,
    list_input,
    long_text,
    model_ask,
    open_corpus,
    open_output,
    require_apart,
)
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.lease import Lease
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.quantize import Ranges

if TYPE_CHECKING:
    from kosbert_ray.job.cluster import EncoderPool
    from kosbert_ray.job.dedup import Shared
    from kosbert_ray.job.pipeline import Pending

MAX_PASSES = 3  # over a corpus that changes while it is read
LOOK_SECONDS = 1.0  # that the live view waits for the board
REPEAT_SECONDS = 60.0  # the same trouble with a store is told no more often

Say = Callable[..., None]  # a line for the user, and by name what it says to a machine


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        output: the output directory.
        totals: sums over all slices in it.
        new: sums over the slices this run committed.
        seconds: wall time of the pipeline.
        first_slice_seconds: of them, until the first commit; None if nothing was to do.
        removed: shards of changed (or removed) inputs that were deleted.
        within_limit: whether the share of rejected rows is within ``max_rejected``.
    """

    output: str
    totals: Totals
    new: Totals
    seconds: float
    first_slice_seconds: float | None
    removed: int
    within_limit: bool


def embed(config: JobConfig, say: Say) -> Summary:
    """Runs a job to its end; run again after any crash, it does what is left.

    Args:
        config: the job.
        say: takes a line for the user.

    Raises:
        KosbertError: the input, the model, the output or the run is at fault. What was committed stays.
    """
    started = time.monotonic()
    ended = Ended("failed", config.output.path)
    try:
        with ExitStack() as stack, _storage_log(say):
            summary = _Run(config, say, stack).run()
        status = "done" if summary.within_limit else "rejected"
        ended = Ended(status, summary.output, totals=asdict(summary.totals), new=asdict(summary.new))
        return summary
    except KosbertError as error:
        ended = replace(ended, error=str(error))
        raise
    except KeyboardInterrupt:
        ended = replace(ended, status="interrupted")
        raise
    finally:
        if config.on_finish:
            notify(config.on_finish, replace(ended, seconds=time.monotonic() - started), say)


def preview(config: JobConfig, say: Say) -> Preview:
    """What :func:`embed` would do, with nothing done; raises what it would raise before its first slice."""
    with ExitStack() as stack:
        return _Run(config, say, stack).preview()


@contextlib.contextmanager
def _storage_log(say: Say) -> Iterator[None]:
    """While a run goes on, the user is told what this process tries again."""

    class Tell(logging.Handler):
        said: ClassVar[dict[str, float]] = {}

        def emit(self, record: logging.LogRecord) -> None:
            message, now = record.getMessage(), time.monotonic()
            if now - self.said.get(message, -REPEAT_SECONDS) >= REPEAT_SECONDS:
                self.said[message] = now
                say(message)

    log, handler = logging.getLogger("kosbert_ray.storage"), Tell(logging.WARNING)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Run:
    """One run of a job: what it knows from its start to its end."""

    def __init__(self, config: JobConfig, say: Say, stack: ExitStack) -> None:
        self.config, self.say, self.stack = config, say, stack
        self.corpus, self.columns = open_corpus(config)
        require_apart(self.corpus, open_output(config))
        self.model = model_ask(config)
        self.spec: ModelSpec = self.model.spec()
        self.long_text = long_text(config, self.spec)
        self.told: set[str] = set()
        self.tell(*self.spec.notices)
        self._tell_of_input()

    def tell(self, *notices: str) -> None:
        """Says what was not said before."""
        for notice in notices:
            if notice not in self.told:
                self.told.add(notice)
                self.say(notice)

    def _tell_of_input(self) -> None:
        """Says how the input is read, what is left out of it, and which of its files cannot be embedded."""
        corpus = self.corpus
        self.tell(*corpus.notices, *filter(None, [corpus.ignored_line()]))
        self.tell(*(f"failed: {file.reason}" for file in corpus.failed[:MAX_FAILED]))

    def _require_all_files(self) -> None:
        """Raises JobFailed if there are files that cannot be embedded; all others are committed by now."""
        failed = self.corpus.failed
        if failed:
            self.ledger.start()  # what an earlier run completed is no longer all that the input holds
            raise JobFailed(
                f"{failed[0].reason} ({len(failed):,} files failed, all others are committed); fix or remove them and run "
                "the same command again"
            )

    def run(self) -> Summary:
        """Passes over the corpus until all of it is committed as it is."""
        output = open_output(self.config)
        output.sweep()
        complete = Ledger(output).success() is not None  # a store that refuses from the start is told at once
        self.ledger = Ledger(open_output(self.config, patient=True))
        lease = self._look_for_others()
        if not complete:
            self.stack.enter_context(lease)
        with ThreadPoolExecutor(2) as background:
            hashing = background.submit(sha256, self.spec.folder, self.spec.weight_files)
            self.loading: Future[Tokenizer] | None = None
            if not complete:  # there is work to do: Ray starts while this goes on
                self.loading = background.submit(Tokenizer.load, self.spec)
                self._start_ray()
            self.weights = hashing.result()
        fragments = fragments_of(self.config, self.corpus)
        self.fingerprint = self._open_job(fragments)
        self.committed: Committed = self.ledger.committed(self.fingerprint)
        self.progress = Progress(
            self.corpus.size,
            Totals.of(self.committed.receipts(item.id for item in fragments)),
            log=self.say if self.config.log_format == "json" else None,
        )
        self.say(
            f"{self.corpus.storage.url()}: {len(self.corpus.files):,} files, {self.corpus.size:,} bytes; "
            f"{self.progress.done.slices:,} slices are committed already"
        )
        if complete and self._is_done(fragments) and not self._leftover(fragments).delete:
            self._require_all_files()
            return self._summary(fragments, removed=0)
        if complete:
            self.stack.enter_context(lease)
        for _ in range(MAX_PASSES):
            if not self._is_done(fragments):
                self.ledger.start()
                self._pass_and_tell(fragments)
            changed = self._look_again()
            if not changed:
                self._require_all_files()
                leftover = self._leftover(fragments)
                self._clear()
                finish(self.ledger, self.committed, self.corpus, fragments, leftover, self.progress.seconds, self.say)
                return self._summary(fragments, removed=sum(bool(receipt.shard) for receipt in leftover.delete))
            self.say(f"{changed[0]}: changed or removed while the run went on ({len(changed):,} files); planning again")
            fragments = fragments_of(self.config, self.corpus)
        raise JobFailed(
            f"{self.corpus.storage.url(changed[0])}: changed in each of {MAX_PASSES} passes; "
            "run the same command again when it is written"
        )

    def _pass_and_tell(self, fragments: list[Fragment]) -> None:
        """A pass whose failure also counts the files that planning gave up."""
        try:
            self._pass(fragments)
        except JobFailed as error:
            if not self.corpus.failed:
                raise
            raise JobFailed(f"{error}; {len(self.corpus.failed):,} more files cannot be read at all") from error

    def preview(self) -> Preview:
        """What :meth:`run` would do."""
        self.ledger = Ledger(open_output(self.config))
        self.weights = sha256(self.spec.folder, self.spec.weight_files)
        fragments = fragments_of(self.config, self.corpus)
        job = self.ledger.job()
        self.committed = Committed()
        if job:
            self.fingerprint = self._open_job(fragments)
            self.committed = self.ledger.committed(self.fingerprint)
        return Preview.of(self.ledger.storage.address, self.corpus, fragments, self.committed, self._leftover(fragments))

    # -- planning --------------------------------------------------------------------------------------------------

    def _open_job(self, fragments: list[Fragment]) -> Fingerprint:
        """Claims the output, or joins it; raises FingerprintMismatch if it is another job's."""
        for last in (False, True):
            self.ranges = self._ranges(fragments) if "int8" in self.config.output.dtype else ()
            fingerprint = fingerprint_of(self.config, self.columns, self.spec, self.weights, self.ranges)
            try:
                self.ledger.open_job(fingerprint, self.config.public())
                return fingerprint
            except FingerprintMismatch:
                if last or not self.ranges:
                    raise  # else another run claimed it while this one measured: its ranges count
        raise AssertionError

    def _ranges(self, fragments: list[Fragment]) -> Ranges:
        """Of int8: those of the output's job, or, for a new output, measured on a sample of the texts."""
        theirs = self.ledger.job()
        if theirs:
            return tuple(tuple(values) for values in theirs.get("fingerprint", {}).get("ranges", ()))
        from kosbert_ray.job.calibrate import calibrate

        pool = self._start_ray()
        return calibrate(self._reader(), fragments, self.model, encoder_options(self.config), pool)

    def _is_done(self, fragments: list[Fragment]) -> bool:
        return all(self.committed.complete(fragment.id) for fragment in fragments)

    def _look_again(self) -> list[str]:
        """Lists the input once more: the files that are no longer what was planned. They are planned anew from now on."""
        before = {file.name: (file.size, file.version) for file in self.corpus.files}
        now = {file.name: (file.size, file.version) for file in list_input(self.config, patient=True).files}
        changed = [name for name, version in before.items() if now.get(name) != version]
        if changed:
            self.corpus, columns = open_corpus(self.config, patient=True)
            self._tell_of_input()
            if columns != self.columns:
                where = self.corpus.storage.url(changed[0])
                raise InputError(f"{where}: its columns changed while the run went on; choose another output for it")
        elif added := now.keys() - before.keys() - {file.name for file in self.corpus.failed}:
            self.say(f"{len(added):,} files were added since the run began; run the same command again for them")
        return changed

    def _leftover(self, fragments: list[Fragment]) -> Leftover:
        return leftover(self.committed, self.corpus, fragments, self.config.output.removed_inputs == "delete")

    # -- running ---------------------------------------------------------------------------------------------------

    def _reader(self) -> FragmentReader:
        storage = self.corpus.storage.patient(self.config.storage.retry_seconds)
        return fragment_reader(self.config, storage, self.columns)

    def _start_ray(self) -> EncoderPool:
        """Starts or joins Ray, if that is not done yet; the stack leaves it when the run ends, and clears up after it.

        Returns:
            The encoders that fit on it.
        """
        from kosbert_ray.job import cluster

        self.stack.callback(self._sweep)
        if cluster.start(self.config.ray):
            self.stack.callback(cluster.stop)
        cluster.configure_data()
        return cluster.encoder_pool(self.config.encoder, input_bytes=self.corpus.size)

    def _sweep(self) -> None:
        with contextlib.suppress(StorageError, OSError):
            self.ledger.storage.sweep()

    def _clear(self) -> None:
        """Every slice is committed: what only they needed goes."""
        if self.config.dedup == "corpus":
            from kosbert_ray.job import dedup

            dedup.clear(self.ledger.storage)

    def _look_for_others(self) -> Lease:
        """Says who else is at work on the output; gives the lease by which this run can leave word that it is, too."""
        lease = Lease(self.ledger.storage, self.ledger.run)
        for other in lease.others():
            self.say(
                f"another run (on {other.host}, process {other.pid}, started {duration(other.age)} ago) is writing to this "
                "output: both will end well, but they do the same work"
            )
        return lease

    def _pass(self, fragments: list[Fragment]) -> None:
        """Runs the slices that are not committed.

        Raises:
            JobFailed: some failed; all others are committed.
            TooManyRejected: more rows were rejected than may be.
        """
        from kosbert_ray.job import pipeline
        from kosbert_ray.job.board import Board
        from kosbert_ray.job.metrics import Metrics
        from kosbert_ray.job.stages import Work
        from kosbert_ray.job.watchdog import Watchdog

        config, committed = self.config, self.committed
        pool = self._start_ray()
        left = [(item, committed.done(item.id)) for item in fragments if not committed.complete(item.id)]
        reader = self._reader()
        shared = self._shared(reader, left)
        board = Board.put_up()
        work = Work(
            reader=reader,
            model=self.model,
            long_text=self.long_text,
            chunk_columns=tuple(config.chunk_columns()),
            weights_sha256=self.weights,
            encoder=pool.encoder_options(encoder_options(config)),
            encoders=pool.maximum,
            output=self.ledger.storage,
            formats=embedding_formats(config, self.spec, self.ranges),
            on_bad_row=config.on_bad_row,
            fingerprint=self.fingerprint.sha256,
            driver_host=socket.gethostname(),
            board=board,
            known=shared.vectors if shared else None,
            together=pool.together(config.slice.limits()),
            together_input_bytes=pool.part(sum(item.input_bytes for item, _ in left)),
        )
        tokenizer = self.loading.result() if self.loading else Tokenizer.load(self.spec)
        self.long_text.check(tokenizer)
        metrics = Metrics(board, pool, self.ledger.storage.address, self.progress.recent)
        self.progress.watch(lambda: board.look(LOOK_SECONDS))
        books = Books(config, self.corpus.size, committed, self.ledger, self.progress, self.say, self.tell)
        books.require_few_rejected()
        known = shared.texts if shared else None
        with (
            self.progress,
            Watchdog(board, pool, config.stall_timeout, self.say) as watchdog,
            contextlib.closing(pipeline.run(work, tokenizer, known, left, pool)) as outcomes,
        ):
            books.take(outcomes, metrics, watchdog.headway)

    def _shared(self, reader: FragmentReader, left: Pending) -> Shared | None:
        """What the slices that are left have in common, embedded, if the job asks for it."""
        if self.config.dedup != "corpus":
            return None
        from kosbert_ray.job import dedup

        output = self.ledger.storage
        shared = dedup.prepare(self.config, reader, left, output, embed, self.say)
        if shared:
            self.stack.callback(shared.vectors.remove)
        return shared

    def _summary(self, fragments: list[Fragment], removed: int) -> Summary:
        totals = Totals.of(self.committed.receipts(fragment.id for fragment in fragments))
        return Summary(
            output=self.ledger.storage.address,
            totals=totals,
            new=self.progress.new,
            seconds=self.progress.seconds,
            first_slice_seconds=self.progress.first_at,
            removed=removed,
            within_limit=totals.rejected <= self.config.rejected_allowed(totals.input_rows),
        )
