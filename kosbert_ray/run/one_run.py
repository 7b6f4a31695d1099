"""One run of a job: plan, skip what is committed, encode the rest, finalize.

The steps are in ``output_state`` (whose output it is and what is committed), ``passes`` (encoding), and ``finalize``
(checking the result and marking it complete).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kosbert_ray._version import __version__
from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.footers import Footers
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.identity import BackgroundHashing
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.encoder.engines.choice import require_fitting
from kosbert_ray.encoder.options import has_gpu, require_possible
from kosbert_ray.encoder.tokenizer import end_notice, unknown_notice
from kosbert_ray.errors import DeviceBroken, InputError, JobFailed, without_remedy
from kosbert_ray.job import (
    Job,
    list_input,
    model_ref,
    open_output,
    recorded_commits,
    require_apart,
    require_input,
    require_outside,
)
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run import reuse
from kosbert_ray.run.account import account
from kosbert_ray.run.bounds import Bound, Bounds
from kosbert_ray.run.dry_run import Preview
from kosbert_ray.run.executors.choice import choose, fixed
from kosbert_ray.run.finalize import Leftover, finish, leftover
from kosbert_ray.run.first_lines import report_engine, report_input, report_prompt
from kosbert_ray.run.monitor.progress import Progress
from kosbert_ray.run.notices import Notices
from kosbert_ray.run.older_vectors import OlderVectors
from kosbert_ray.run.output_state import OutputState
from kosbert_ray.run.passes import Pass
from kosbert_ray.run.resources import Resources
from kosbert_ray.run.reuse import OlderOutput
from kosbert_ray.run.summary import Summary
from kosbert_ray.shards.field_ids import ENTRY as FIELD_IDS
from kosbert_ray.shards.field_ids import field_ids, with_field_ids
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.lease import Lease
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.shards.vector_types import Ranges, needs_ranges
from kosbert_ray.storage import Storage
from kosbert_ray.stored import resumed, schema_entry, settled_types, taken
from kosbert_ray.units import data_size, duration, plural

if TYPE_CHECKING:
    from kosbert_ray.run.corpus_dedup import Shared
    from kosbert_ray.run.executors.base import EncoderPool, Executor, Pending

MAX_PASSES = 3  # over a corpus that changes while it is read

log = logging.getLogger(__name__)

# Runs another job: ``lifecycle.embed``.
Embed = Callable[[JobConfig, PreparedModel | None], Summary]


def stored_job(ledger: Ledger) -> dict[str, Any]:
    """The content of job.json; empty if it was left by a run that committed nothing."""
    job = ledger.read_job() or {}
    return {} if job and ledger.is_abandoned(job) else job


class Run:
    """One run of a job.

    Args:
        config: the job.
        stack: ends what the run starts.
        embed: runs another job, for the texts that slices share.
        model: the job's model, if it is prepared already.

    Attributes:
        job: the resolved job, with the options of an existing output.
        output: the output.
        progress: the live view, once the run knows what is committed.
    """

    def __init__(self, config: JobConfig, stack: ExitStack, embed: Embed, model: PreparedModel | None = None) -> None:
        self._stack, self._notices, self._embed = stack, Notices(), embed
        self._ranges: Ranges = ()
        self._bounds = Bounds.of(config)
        self._reused: OlderVectors | None = None
        self._given = config
        require_input(config)
        storage = open_output(config)
        ledger = Ledger(storage)
        stored = stored_job(ledger)
        self._notices.info(*ledger.notices)
        resolved = resumed(config, stored, storage.address) if stored else config
        settled = settled_types(stored, storage, ledger.each_shard()) if stored else None
        if stored and (settings := taken(self._given, stored, storage.address)):
            self._notices.info(f"settings from {storage.url(JOB_FILE)}: {settings}")
        ref = model_ref(resolved, recorded_commits(resolved, stored))
        self._footers = Footers(storage)
        self.job = Job.resolve(
            resolved, settled=settled, model=model or ref, footers=self._footers if settled is not None else None
        )
        require_apart(self.job.corpus, storage)
        if model is None:  # else it is a job within an output
            require_outside(storage)
        self.job.long_text  # noqa: B018 (raises before anything is done)
        self._notices.info(*self.job.spec.notices)
        self._older = OlderOutput.open(resolved) if resolved.reuse else None
        if model is None:  # else it is the job of another run, which has told it
            report_prompt(self.job, config, bool(stored), self._notices)
        require_possible(self._given.encoder)
        require_fitting(self.job.spec, self._given.encoder)
        self.job = self.job.with_engine()
        report_engine(resolved, self.job, self._notices)
        report_input(self.job.corpus, self._notices)
        self.output = OutputState(Ledger(storage), stored, self._notices)
        self._resources = Resources(resolved, self.output, stack, model)
        self.progress: Progress
        self._lease: Lease

    @property
    def config(self) -> JobConfig:
        """The job's options."""
        return self.job.config

    def run(self) -> Summary:
        """Runs passes over the corpus until all of it is committed as it is.

        Raises:
            Raced: the output was new, and another run claimed it first.
        """
        storage = open_output(self.config)
        storage.sweep()
        complete = Ledger(storage).success() is not None  # a store that refuses from the start is reported at once
        self.output.ledger = Ledger(open_output(self.config, retry=True))
        self._lease = lease = self._new_lease()
        if complete:
            model = self._resources.prepare_model(keep=False)
        else:
            self._stack.enter_context(lease)
            executor = self._early_choice()
            model = self._resources.prepare(self.job.spec.pickled, executor)
        self._use_model(model)  # its folder may have been replaced since it was first read
        log.debug(f"run {self.output.ledger.run} of kosbert-ray {__version__}; the model is in {self.job.spec.folder}")
        self._size_slices()
        self._require_reusable(model)
        self._claim()
        self._use_corpus(self.output.look(self.job.corpus))
        fragments = self._fragments()
        self.progress = Progress(
            self.job.corpus.size,
            self.output.totals(fragments),
            logged=self.config.log_format == "json",
            limit=self.config.limit,
        )
        lease.report = self.progress.report
        corpus = self.job.corpus
        log.info(
            f"{corpus.storage.url()}: {plural(len(corpus.files), 'file')}, {data_size(corpus.size)}; "
            f"{plural(self.progress.done.slices, 'slice', 'are')} committed already"
        )
        if complete and self._is_up_to_date(fragments):
            # Whether the rejected rows were few enough was decided by the run that completed the output.
            self.output.hashes.flush()
            self._require_all_files()
            return replace(self._summary(fragments), complete=True)
        if complete:
            self._stack.enter_context(lease)
        self._footers.remember(self.job.corpus.files, self.output.ledger.run)
        return self._passes(fragments)

    def _is_up_to_date(self, fragments: list[Fragment]) -> bool:
        output, left = self.output, self._leftover(fragments)
        expected = [*output.committed.receipts(fragment.id for fragment in fragments), *left.keep]
        return output.is_done(fragments) and not left.delete and output.is_whole(expected)

    def _passes(self, fragments: list[Fragment]) -> Summary:
        for _ in range(MAX_PASSES):
            done = self.output.is_done(fragments)
            if not done and (bound := self._bounds.reached(self.progress.totals.rows)):
                return replace(self._summary(fragments), bound=bound)
            self._start_account()
            if not done:
                with BackgroundHashing(self.output.hashes, self.job.corpus):
                    bound = self._pass(fragments)
                if bound and not self.output.is_done(fragments):
                    return replace(self._summary(fragments), bound=bound)
                if notice := unknown_notice(self.progress.new.unknown_tokens, self.progress.new.encoded_tokens):
                    log.warning(notice)
            changed = self._list_again()
            if not changed:
                self._require_all_files()
                return self._finish(fragments)
            first, how = next(iter(changed.items()))
            more = "" if len(changed) == 1 else f" ({plural(len(changed), 'file')} in all)"
            log.info(f"{first}: {how} during the run{more}; planning again")
            fragments = self._fragments()
        raise JobFailed(
            f"{self.job.corpus.storage.url(first)}: {how} in each of {MAX_PASSES} passes; "
            "run the same command again when it is written"
        )

    def preview(self) -> Preview:
        """Describes what :meth:`run` would do; writes nothing."""
        model = self._resources.prepare_model(keep=False)
        self._use_model(model)
        self._size_slices()
        self._require_reusable(model)
        if self.output.stored or not needs_ranges(self.config.output.dtype):  # a dry run measures no ranges
            self._ranges = self.output.ranges
            if self.output.join(self._fingerprint(model), model):
                self._use_corpus(self.output.look(self.job.corpus))
        fragments = self._fragments()
        output = self.output
        address, left = output.ledger.storage.address, self._leftover(fragments)
        retired = bool(output.ledger.publications.tables)
        return Preview.of(address, self.job.corpus, fragments, output.committed, left, output.changes, retired)

    # -- input ---------------------------------------------------------------------------------------------------------

    def _require_all_files(self) -> None:
        """Raises JobFailed if some files cannot be embedded; all others are committed by now."""
        failed = self.job.corpus.failed
        if failed:
            self._start_account()  # what an earlier run completed is no longer all of the input
            raise JobFailed(
                f"{failed[0].reason} ({plural(len(failed), 'file')} failed, all others are "
                "committed); fix or remove them and run "
                "the same command again"
            )

    def _use_corpus(self, corpus: Corpus) -> None:
        self.job = replace(self.job, corpus=corpus)

    def _fragments(self) -> list[Fragment]:
        return self.job.fragments_left(self.output.committed, self.output.fingerprint)

    def _list_again(self) -> dict[str, str]:
        """Lists the input once more, and plans again if files have changed.

        Returns:
            The files that are no longer as they were planned: "changed" or "removed", by name.
        """
        before = {file.name: file.listed for file in self.job.corpus.files}
        now = {file.name: file.listed for file in list_input(self.config, retry=True).files}
        changed = {
            name: "changed" if name in now else "removed" for name, listed in before.items() if now.get(name) != listed
        }
        if changed:
            columns = self.job.columns
            job, known = self.job, self._footers
            self.job = Job.resolve(self.config, retry=True, settled=columns.keep, model=job.model, footers=known)
            report_input(self.job.corpus, self._notices)
            if self.job.columns != columns:
                where = self.job.corpus.storage.url(next(iter(changed)))
                raise InputError(f"{where}: its columns changed during the run; choose another output for it")
            self._use_corpus(self.output.settle(self.job.corpus))
            self.progress.total_bytes = self.job.corpus.size
        elif added := now.keys() - before.keys() - {file.name for file in self.job.corpus.failed}:
            log.info(f"{plural(len(added), 'file', 'were')} added since the run began; run the same command again for them")
        return changed

    # -- output --------------------------------------------------------------------------------------------------------

    def _new_lease(self) -> Lease:
        """Logs which other runs write to this output; returns the lease by which others notice this one."""
        lease = Lease(self.output.ledger.storage, self.output.ledger.run)
        for other in lease.others():
            log.info(
                f"another run (on {other.host}, process {other.pid}, started {duration(other.age)} ago) is writing to this "
                "output: both runs are safe, but they duplicate work"
            )
        return lease

    def _claim(self) -> None:
        if needs_ranges(self.config.output.dtype):
            self._ranges = self.output.ranges if self.output.stored else self._measured_ranges()
        model = self._resources.model
        assert model is not None
        more = schema_entry(self.job.columns.keep) | {"model": model.described()}
        if not (self.output.stored or self.output.has_old_shards()):
            more[FIELD_IDS] = field_ids(with_field_ids(self.job.shard_schema()))
        self.output.claim(self._fingerprint(model), model, self.config.public(), more)

    def _fingerprint(self, model: PreparedModel) -> Fingerprint:
        return self.job.fingerprint(model.digests.weights, self._ranges, model.digests.heads)

    def _require_reusable(self, model: PreparedModel) -> None:
        if self._older:
            self._older.require_same(self._fingerprint(model), model)

    def _start_account(self) -> None:
        ledger = self.output.ledger
        ledger.start(account(ledger.run, self._given, self.job.corpus, self._resources.model))

    def _leftover(self, fragments: list[Fragment]) -> Leftover:
        delete = self.config.output.removed_inputs == "delete"
        retired = self.output.ledger.publications.retired
        return leftover(self.output.committed, self.job.corpus, fragments, delete, retired)

    def _finish(self, fragments: list[Fragment]) -> Summary:
        """Checks the output against the plan and, unless too many rows were rejected, marks it complete."""
        output = self.output
        output.ledger.set_aside_broken()
        summary = self._summary(fragments)
        left = self._leftover(fragments)
        seconds = self.progress.seconds
        finish(
            output.ledger,
            output.digest,
            output.committed,
            self.job.corpus,
            fragments,
            left,
            summary.within_limit,
            seconds,
        )
        if summary.within_limit:
            self._clear(output.ledger.storage)
        files = {file.name for file in self.job.corpus.files}
        gone = [receipt.file in files for receipt in left.delete if receipt.shard]
        return replace(
            summary,
            complete=summary.within_limit,
            removed=len(gone),
            changed=sum(gone),
            retired=bool(output.ledger.publications.tables),
        )

    def _clear(self, output: Storage) -> None:
        """Deletes what was kept for a run that resumes this one."""
        if self.config.dedup == "corpus":
            from kosbert_ray.run import corpus_dedup

            corpus_dedup.clear(output)
        reuse.clear(output)

    def _summary(self, fragments: list[Fragment]) -> Summary:
        totals = self.output.totals(fragments)
        return Summary(
            output=self.output.ledger.storage.address,
            totals=totals,
            new=self.progress.new,
            seconds=self.progress.seconds,
            first_slice_seconds=self.progress.first_at,
            start_seconds=self.progress.start_seconds,
            removed=0,
            within_limit=totals.rejected <= self.config.rejected_allowed(totals.input_rows),
            chunked=self.config.chunked,
            kinds=self.job.kinds,
        )

    # -- encoding ------------------------------------------------------------------------------------------------------

    def _size_slices(self) -> None:
        """Settles the size of slices, for this run and those that resume it."""
        executor, options = self._resources.executor, self.config.encoder
        gpu = executor.encoder_pool(options, self.job.corpus.size).gpus > 0 if executor else has_gpu(options)
        self.job = self.job.sized(gpu)

    def _use_model(self, model: PreparedModel) -> None:
        self.job = replace(self.job, model=model)

    def _whole_files(self) -> list[Fragment]:
        """The input before it is planned."""
        return [Fragment(file, 0, 0, file.size) for file in self.job.corpus.files]

    def _executor(self, fragments: list[Fragment]) -> Executor:
        """The executor in use, or the one that suits these fragments."""
        return self._resources.executor or self._resources.start(self._choose(fragments))

    def _early_choice(self) -> str | None:
        """The executor that can start while the run is planned; None if the choice depends on the plan."""
        if not self.output.stored:
            return self._choose(self._whole_files())
        return fixed(self.config)  # what is left of an output that has committed slices is known later

    def _choose(self, fragments: list[Fragment]) -> str:
        """The executor for these fragments."""
        killed = any(run.executor == "local" for run in self._lease.dead)
        choice = choose(self.config, self.job.spec, fragments, killed, self._bounds.share(fragments))
        if choice.reason:
            self._notices.info(f"executor={choice.name}: {choice.reason}")
        return choice.name

    def _encoders(self, executor: Executor) -> tuple[EncoderPool, PreparedModel]:
        """The encoder pool, and the model as every node can load it."""
        self._lease.record_executor(executor.name)
        pool = executor.encoder_pool(self.config.encoder, self.job.corpus.size)
        model = self._resources.shared_model(pool)
        self._use_model(model)
        return pool, model

    def _measured_ranges(self) -> Ranges:
        """Ranges of int8 for a new output, measured on a sample of the texts."""
        from kosbert_ray.run.int8_ranges import calibrate

        fragments, reader = self.job.fragments(), self.job.reader(retry=True)
        executor = self._executor(fragments)
        pool, model = self._encoders(executor)
        return calibrate(reader, fragments, model, self.config.encoder, executor, pool)

    def _pass(self, fragments: list[Fragment]) -> Bound:
        """Encodes the open slices; a failure also counts the files that planning gave up."""
        try:
            try:
                return self._run_pass(fragments)
            except DeviceBroken as error:
                executor = self._resources.executor
                if executor is None or executor.name != "local" or self.config.executor != "auto":
                    raise
                log.warning(f"{without_remedy(error)}: continuing on Ray, whose workers can be replaced")
                self._resources.start("ray")
                return self._run_pass(fragments)
        except JobFailed as error:
            failed = len(self.job.corpus.failed)
            if not failed:
                raise
            raise JobFailed(f"{error}; {failed:,} more files cannot be read at all") from error

    def _run_pass(self, fragments: list[Fragment]) -> Bound:
        """Encodes open slices; with a limit, those of as many fragments as it takes."""
        bound: Bound = ""
        pending = self.output.pending(fragments)
        while pending and not bound:
            first = self._bounds.first(pending, self.progress.totals.rows)
            bound = self._encode(first)
            pending = pending[len(first) :]
        return bound

    def _encode(self, pending: Pending) -> Bound:
        executor = self._executor([item for item, _ in pending])
        pool, model = self._encoders(executor)
        tokenizer = self._resources.tokenizer()
        self._notices.info(*filter(None, [end_notice(self.job.spec, tokenizer)]))
        strict = self._given.encoder.engine != "auto"
        this = Pass(
            job=self.job,
            model=model,
            tokenizer=tokenizer,
            ranges=self._ranges,
            output=self.output,
            progress=self.progress,
            notices=self._notices,
            executor=executor,
            pool=pool,
            strict_engine=strict,
            bounds=self._bounds,
            older=self._older_vectors(executor),
        )
        return this.run(pending, self._shared(this, pending))

    def _older_vectors(self, executor: Executor) -> OlderVectors | None:
        """The vectors of the older output that the run reuses."""
        if self._older and not self._reused:
            self._reused = reuse.prepare(self._older, self.output.ledger.storage, executor)
            if self._reused:
                self._stack.callback(executor.remove_everywhere, str(self._reused.folder))
        return self._reused

    def _shared(self, this: Pass, pending: Pending) -> Shared | None:
        """Texts that occur in several open slices, embedded, if the job asks for it."""
        if self.config.dedup != "corpus":
            return None
        if self.config.limit is not None:
            self._notices.info("dedup=corpus: a trial (limit) does not look for texts that occur in several slices")
            return None
        from kosbert_ray.run import corpus_dedup

        older = self._older and not self.config.chunked and self._older.format.dtype == "float32"
        shared = corpus_dedup.prepare(
            self.config if older else self.config.model_copy(update={"reuse": ""}),
            self.job.reader(retry=True),
            pending,
            self.output.ledger.storage,
            this.executor,
            lambda inner: self._embed(inner, this.model),
        )
        if shared:
            self._stack.callback(this.executor.remove_everywhere, str(shared.vectors.folder))
        return shared
