"""A run from its config to its last line: plan, subtract what is committed, run the rest, finalise."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from kosbert_ray._version import __version__
from kosbert_ray.config import PRIVATE, JobConfig
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.identity import BackgroundHashing, FileHashes
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.encoder.prepare import PreparedModel
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.encoder.tokenizer import Tokenizer, unknown_notice
from kosbert_ray.errors import (
    FingerprintMismatch,
    InputError,
    JobFailed,
    KosbertError,
    StorageError,
)
from kosbert_ray.job import (
    embedding_formats,
    encoder_options,
    fingerprint_of,
    fragment_reader,
    fragments_left,
    fragments_of,
    list_input,
    long_text,
    model_ask,
    open_corpus,
    open_output,
    recorded_commit,
    require_apart,
    require_input,
)
from kosbert_ray.run.bookkeeping import MAX_FAILED, Books
from kosbert_ray.run.dry_run import Preview
from kosbert_ray.run.finalize import Leftover, finish, leftover
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.run.notify import Ended, notify
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.lease import Lease
from kosbert_ray.shards.ledger import JOB_FILE, Committed, Ledger
from kosbert_ray.shards.totals import Totals
from kosbert_ray.shards.vector_types import Ranges, needs_ranges
from kosbert_ray.stored import resumed, schema_entry, settled_types, taken
from kosbert_ray.units import duration

if TYPE_CHECKING:
    from kosbert_ray.run.corpus_dedup import Shared
    from kosbert_ray.run.pipeline import Pending
    from kosbert_ray.run.ray_session import EncoderPool

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "openvino")  # whose versions a run records
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
        within_limit: whether the rejected rows are within ``max_rejected``; if not, the output is not complete.
        chunked: whether long texts became a row for each chunk.
        complete: whether the output has its ``_SUCCESS``.
    """

    output: str
    totals: Totals
    new: Totals
    seconds: float
    first_slice_seconds: float | None
    removed: int
    within_limit: bool
    chunked: bool = False
    complete: bool = False


def embed(config: JobConfig, say: Say, model: PreparedModel | None = None) -> Summary:
    """Runs a job to its end; run again after any crash, it does what is left.

    Args:
        config: the job.
        say: takes a line for the user.
        model: the job's model, if it is prepared already.

    Raises:
        KosbertError: the input, the model, the output or the run is at fault. What was committed stays.
    """
    started = time.monotonic()
    ended = Ended("failed", config.output.path)
    try:
        with _storage_log(say):
            summary = _run(config, say, model)
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


def settings_of(config: JobConfig) -> JobConfig:
    """The config that :func:`embed` would run with: options that are not given come from the output's job.json."""
    output = open_output(config)
    job = _job_in(Ledger(output))
    return resumed(config, job, output.address) if job else config


def _job_in(books: Ledger) -> dict[str, Any]:
    """The content of job.json; empty if a run that committed nothing left it, which leaves no settings."""
    job = books.read_job() or {}
    return {} if job and books.is_abandoned(job) else job


def _run(config: JobConfig, say: Say, model: PreparedModel | None) -> Summary:
    for last in (False, False, True):
        with ExitStack() as stack:
            try:
                return _Run(config, say, stack, model).run()
            except _Raced as error:
                if last:
                    raise JobFailed(
                        f"{config.output.path}: other runs keep claiming it; run the same command again"
                    ) from error
                say("another run has claimed this output first: planning again with its settings")
    raise AssertionError


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
    if any(type(other).__name__ == Tell.__name__ for other in log.handlers):  # a run within a run: report once
        yield
        return
    propagate = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


class _Raced(Exception):
    """Raised when another run claimed a new output first: its settings apply, so this run plans again."""


class _Run:
    """One run of a job: what it knows from its start to its end."""

    def __init__(self, config: JobConfig, say: Say, stack: ExitStack, model: PreparedModel | None = None) -> None:
        self.asked, self.say, self.stack = config, say, stack
        self.told: set[str] = set()
        self.ranges: Ranges = ()
        self.on_ray = False
        self.changes: dict[str, str] = {}
        require_input(config)
        output = open_output(config)
        books = Ledger(output)
        self.job = _job_in(books)
        self.tell(*books.notices)
        self.config = config = resumed(config, self.job, output.address) if self.job else config
        settled = settled_types(self.job, output, books.shards()) if self.job else None
        if self.job and (settings := taken(self.asked, self.job, output.address)):
            self.tell(f"settings from {output.url(JOB_FILE)}: {settings}")
        self.corpus, self.columns = open_corpus(config, settled=settled)
        require_apart(self.corpus, output)
        self.model = model
        self.spec: ModelSpec = model.spec() if model else model_ask(config, recorded_commit(config, self.job)).spec()
        self.long_text = long_text(config, self.spec)
        self.tell(*self.spec.notices)
        self._tell_of_input()

    def tell(self, *notices: str) -> None:
        """Says what was not said before."""
        for notice in notices:
            if notice not in self.told:
                self.told.add(notice)
                self.say(notice)

    def _tell_of_input(self) -> None:
        """Reports how the input is read, which files are skipped, and which cannot be embedded."""
        corpus = self.corpus
        self.tell(*corpus.notices, *filter(None, [corpus.ignored_line()]))
        self.tell(*(f"failed: {file.reason}" for file in corpus.failed[:MAX_FAILED]))

    def _require_all_files(self) -> None:
        """Raises JobFailed if there are files that cannot be embedded; all others are committed by now."""
        failed = self.corpus.failed
        if failed:
            self.ledger.start(self._account())  # what an earlier run completed is no longer all that the input holds
            raise JobFailed(
                f"{failed[0].reason} ({len(failed):,} files failed, all others are committed); fix or remove them and run "
                "the same command again"
            )

    def run(self) -> Summary:
        """Passes over the corpus until all of it is committed as it is.

        Raises:
            _Raced: the output was new, and another run has claimed it first.
        """
        output = open_output(self.config)
        output.sweep()
        complete = Ledger(output).success() is not None  # a store that refuses from the start is told at once
        self.ledger = Ledger(open_output(self.config, patient=True))
        lease = self._look_for_others()
        if not complete:
            self.stack.enter_context(lease)
        with ThreadPoolExecutor(2) as background:
            preparing = background.submit(self._prepare, copy=not complete)
            self.loading: Future[Tokenizer] | None = None
            if not complete:  # there is work to do: Ray starts while this goes on
                if self.spec.pickled:  # what is refused is refused before Ray starts
                    preparing.result()
                self.loading = background.submit(lambda: Tokenizer.load(preparing.result().spec()))
                self._start_ray()
            self.model = preparing.result()
            self.weights = self.model.digests.weights
            self.spec = self.model.spec()  # its folder may have been replaced since it was first looked into
            self.long_text = long_text(self.config, self.spec)
        self.digest = self._claim()
        self._look_at_output()
        fragments = self._fragments()
        self.progress = Progress(
            self.corpus.size,
            Totals.of(self.committed.receipts(item.id for item in fragments)),
            log=self.say if self.config.log_format == "json" else None,
        )
        self.say(
            f"{self.corpus.storage.url()}: {len(self.corpus.files):,} files, {self.corpus.size:,} bytes; "
            f"{self.progress.done.slices:,} slices are committed already"
        )
        if complete and self._is_done(fragments) and not self._leftover(fragments).delete and self._books_are_whole():
            # Whether few enough rows were rejected was decided by the run that completed the output.
            self.hashes.flush()
            self._require_all_files()
            return replace(self._summary(fragments, removed=0), complete=True)
        if complete:
            self.stack.enter_context(lease)
        for _ in range(MAX_PASSES):
            self.ledger.start(self._account())
            if not self._is_done(fragments):
                with BackgroundHashing(self.hashes, self.corpus):
                    self._pass_and_tell(fragments)
                if notice := unknown_notice(self.progress.new.unknown_tokens, self.progress.new.encoded_tokens):
                    self.tell(f"warning: {notice}")
            changed = self._look_again()
            if not changed:
                self._require_all_files()
                return self._finish(fragments)
            self.say(f"{changed[0]}: changed or removed while the run went on ({len(changed):,} files); planning again")
            fragments = self._fragments()
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
        """What :meth:`run` would do; nothing is written."""
        self.ledger = Ledger(open_output(self.config))
        self.model = self._prepare(copy=False)
        self.weights = self.model.digests.weights
        self.committed = Committed()
        if self.job or not needs_ranges(self.config.output.dtype):  # ranges are not measured here
            self.ranges = self._stored_ranges()
            fingerprint = self._fingerprint()
            digest = self.ledger.join(fingerprint, self._same_weights(fingerprint, self.model))
            if digest:
                self.digest = digest
                self._look_at_output()
        fragments = self._fragments()
        left = self._leftover(fragments)
        address = self.ledger.storage.address
        return Preview.of(address, self.corpus, fragments, self.committed, left, self.changes)

    # -- planning --------------------------------------------------------------------------------------------------

    def _claim(self) -> str:
        """Claims the output, or joins it; gives its digest.

        Raises:
            FingerprintMismatch: it is another job's.
            _Raced: another run claimed it since this one looked.
        """
        if needs_ranges(self.config.output.dtype):
            self.ranges = self._stored_ranges() if self.job else self._measured_ranges()
        fingerprint = self._fingerprint()
        assert self.model is not None
        more = schema_entry(self.columns.keep) | {"model": self.model.described()}
        same = self._same_weights(fingerprint, self.model)
        try:
            digest = self.ledger.claim(fingerprint, self.config.public(), more, same)
        except FingerprintMismatch as error:
            if not self.job and not self.ledger.is_abandoned(self.ledger.job()):
                raise _Raced from error
            raise
        if not self.job:
            self.job = self.ledger.job()
            if self.job.get("run") != self.ledger.run:
                raise _Raced
        return digest

    def _same_weights(self, fingerprint: Fingerprint, model: PreparedModel) -> tuple[str, ...]:
        """Version 0.1.0's hash of the model, where the output has another than today's."""
        theirs = self.job.get("fingerprint", {}).get("weights", fingerprint.weights)
        return () if theirs == fingerprint.weights else (model.legacy_weights(),)

    def _fingerprint(self) -> Fingerprint:
        return fingerprint_of(self.config, self.columns, self.spec, self.weights, self.ranges)

    def _stored_ranges(self) -> Ranges:
        return tuple(tuple(values) for values in self.job.get("fingerprint", {}).get("ranges", ()))

    def _measured_ranges(self) -> Ranges:
        """Of int8, for a new output: measured on a sample of the texts."""
        from kosbert_ray.run.int8_ranges import calibrate

        pool = self._start_ray()
        fragments = fragments_of(self.config, self.corpus)
        return calibrate(self._reader(), fragments, self._shared_model(pool), encoder_options(self.config), pool)

    def _look_at_output(self) -> None:
        """Reads what is committed, and finds which input files are unchanged."""
        self.committed = self.ledger.committed(self.digest)
        for receipt in self.ledger.lost_rejected(self.committed):
            self.tell(f"{receipt.shard}: its file of rejected rows is missing or truncated; the slice is recomputed")
            self.committed.drop(receipt)
        self.tell(*self.ledger.notices)
        self.hashes = FileHashes(self.ledger.storage, self.ledger.run)
        self._settle_identities()

    def _settle_identities(self) -> None:
        settled = self.hashes.settle(self.corpus, self.committed.versions())
        self.corpus, self.changes = settled.corpus, settled.changed
        if settled.same:
            self.tell(f"{len(settled.same):,} files have a new modification time but the same content: unchanged")

    def _fragments(self) -> list[Fragment]:
        return fragments_left(self.config, self.corpus, self.committed, self.job.get("fingerprint", {}))

    def _books_are_whole(self) -> bool:
        """True if the manifest of a complete output can be read and names exactly the shards that are there."""
        try:
            manifest = self.ledger.manifest() or []
        except StorageError:
            return False
        self.tell(*self.ledger.notices)
        named, there = ({item.shard for item in receipts} - {""} for receipts in (manifest, self.committed.all()))
        return named == there and not self.ledger.broken

    def _account(self) -> dict[str, Any]:
        """Describes this run for ``_kosbert/runs``: what may differ from run to run."""
        versions = {}
        for name in PACKAGES:
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(name)
        return {
            "run": self.ledger.run,
            "kosbert_ray": __version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "input": self.corpus.storage.address,
            "files": len(self.corpus.files),
            "model": self.model.described() if self.model else None,
            "said": self.asked.model_dump(mode="json", exclude_unset=True, exclude=PRIVATE),
            "versions": versions,
        }

    def _finish(self, fragments: list[Fragment]) -> Summary:
        """Checks the output against the plan and, unless too many rows were rejected, marks it complete."""
        self.ledger.set_aside_broken()
        summary = self._summary(fragments, removed=0)
        leftover = self._leftover(fragments)
        finish(
            self.ledger,
            self.digest,
            self.committed,
            self.corpus,
            fragments,
            leftover,
            summary.within_limit,
            self.progress.seconds,
            self.say,
        )
        if summary.within_limit:
            self._clear()
        return replace(
            summary, complete=summary.within_limit, removed=sum(bool(receipt.shard) for receipt in leftover.delete)
        )

    def _is_done(self, fragments: list[Fragment]) -> bool:
        return all(self.committed.complete(fragment.id) for fragment in fragments)

    def _look_again(self) -> list[str]:
        """Lists the input once more: the files that are no longer what was planned. They are planned again from now on."""
        before = {file.name: file.listed for file in self.corpus.files}
        now = {file.name: file.listed for file in list_input(self.config, patient=True).files}
        changed = [name for name, listed in before.items() if now.get(name) != listed]
        if changed:
            self.corpus, columns = open_corpus(self.config, patient=True, settled=self.columns.keep)
            self._tell_of_input()
            if columns != self.columns:
                where = self.corpus.storage.url(changed[0])
                raise InputError(f"{where}: its columns changed while the run was on; choose another output for it")
            self._settle_identities()
        elif added := now.keys() - before.keys() - {file.name for file in self.corpus.failed}:
            self.say(f"{len(added):,} files were added since the run began; run the same command again for them")
        return changed

    def _leftover(self, fragments: list[Fragment]) -> Leftover:
        return leftover(self.committed, self.corpus, fragments, self.config.output.removed_inputs == "delete")

    # -- running ---------------------------------------------------------------------------------------------------

    def _prepare(self, copy: bool) -> PreparedModel:
        """The job's model, hashed; and, for a run that is to encode, where nothing changes it."""
        model = self.model or model_ask(self.config).prepare(recorded_commit(self.config, self.job))
        return model.kept() if copy else model

    def _shared_model(self, pool: EncoderPool) -> PreparedModel:
        """The model as all nodes can load it: beside the output, if there may be nodes that cannot fetch it."""
        assert self.model is not None
        model = self.model.kept()
        if model.travels and not pool.local and not model.uploaded:
            model = model.upload(self.ledger.storage)
        self.model = model
        self.spec = model.spec()
        return model

    def _reader(self) -> FragmentReader:
        storage = self.corpus.storage.patient(self.config.storage.retry_seconds)
        return fragment_reader(self.config, storage, self.columns)

    def _start_ray(self) -> EncoderPool:
        """Starts or joins Ray, if that is not done yet; the stack leaves it when the run ends, and clears up after it.

        Returns:
            The encoders that fit on it.
        """
        from kosbert_ray.run import ray_session

        if not self.on_ray:
            self.on_ray = True
            self.stack.callback(self._sweep)
            self.stack.enter_context(ray_session.joined(self.config.ray))
            self.stack.enter_context(ray_session.data_settings())
        return ray_session.encoder_pool(self.config.encoder, input_bytes=self.corpus.size)

    def _sweep(self) -> None:
        with contextlib.suppress(StorageError, OSError):
            self.ledger.storage.sweep()

    def _clear(self) -> None:
        """Every slice is committed: what only they needed goes."""
        if self.config.dedup == "corpus":
            from kosbert_ray.run import corpus_dedup

            corpus_dedup.clear(self.ledger.storage)

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
        from kosbert_ray.run import pipeline
        from kosbert_ray.run.monitor.board import Board
        from kosbert_ray.run.monitor.metrics import Metrics
        from kosbert_ray.run.monitor.watchdog import Watchdog
        from kosbert_ray.run.stages import Work

        config, committed = self.config, self.committed
        pool = self._start_ray()
        model = self._shared_model(pool)
        left = [(item, committed.done(item.id)) for item in fragments if not committed.complete(item.id)]
        reader = self._reader()
        shared = self._shared(reader, left)
        board = Board.put_up()
        work = Work(
            reader=reader,
            model=model,
            long_text=self.long_text,
            chunk_columns=tuple(config.chunk_columns()),
            encoder=pool.encoder_options(encoder_options(config)),
            encoders=pool.maximum,
            output=self.ledger.storage,
            formats=embedding_formats(config, self.spec, self.ranges),
            on_bad_row=config.on_bad_row,
            fingerprint=self.digest,
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
        from kosbert_ray.run import corpus_dedup

        output = self.ledger.storage
        embed_same = partial(embed, model=self.model)
        shared = corpus_dedup.prepare(self.config, reader, left, output, embed_same, self.say)
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
            chunked=self.config.long_text == "chunk",
        )
