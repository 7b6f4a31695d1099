"""Runs jobs: :func:`embed` runs one, :func:`preview` is its dry run. ``one_run`` has the steps."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Protocol

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import JobFailed, KosbertError
from kosbert_ray.job import open_output
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.dry_run import Preview
from kosbert_ray.run.notify import Ended, notify
from kosbert_ray.run.one_run import Run, stored_job
from kosbert_ray.run.output_state import Raced
from kosbert_ray.run.summary import Summary
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.stored import resumed

MAX_RACES = 3  # claims of a new output that were lost to other runs

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Publishes an output after its run."""

    def check(self, config: JobConfig) -> None:
        """Raises KosbertError before the run if what ``config`` asks for cannot work."""
        ...

    def publish(self, config: JobConfig) -> tuple[str, ...]:
        """Publishes the complete output as ``config`` says; returns the errors of what it could not publish."""
        ...


def embed(config: JobConfig, model: PreparedModel | None = None, publisher: Publisher | None = None) -> Summary:
    """Runs a job. After a crash, run it again: it skips what is committed.

    Args:
        config: the job.
        model: the job's model, if it is prepared already.
        publisher: publishes the output if it is complete.

    Raises:
        KosbertError: the input, the model, the output or the run failed. Committed slices stay.
    """
    started = time.monotonic()
    ended = Ended("failed", config.output.path)
    try:
        summary, settled = _run(config, model, publisher)
        if publisher and summary.complete:
            summary = replace(summary, unpublished=publisher.publish(settled))
        status = summary.bound or ("done" if summary.within_limit else "rejected")
        totals, new = asdict(summary.totals), asdict(summary.new)
        ended = Ended(status, summary.output, totals=totals, new=new, unpublished=summary.unpublished)
        return summary
    except KosbertError as error:
        ended = replace(ended, error=str(error))
        raise
    except KeyboardInterrupt:
        ended = replace(ended, status="interrupted")
        raise
    finally:
        if config.on_finish:
            notify(config.on_finish, replace(ended, seconds=time.monotonic() - started))


def preview(config: JobConfig) -> Preview:
    """Describes what :func:`embed` would do, without writing; raises what it would raise before its first slice."""
    with ExitStack() as stack:
        return Run(config, stack, embed).preview()


def settings_of(config: JobConfig) -> JobConfig:
    """The config that :func:`embed` would use: options that are not given come from the output's job.json."""
    output = open_output(config)
    stored = stored_job(Ledger(output))
    return resumed(config, stored, output.address) if stored else config


def _run(config: JobConfig, model: PreparedModel | None, publisher: Publisher | None) -> tuple[Summary, JobConfig]:
    """Runs a job; returns its summary, and its options with those of an existing output."""
    for _ in range(MAX_RACES):
        with ExitStack() as stack:
            try:
                run = Run(config, stack, embed, model)
                if publisher:
                    publisher.check(run.config)
                return run.run(), run.config
            except Raced:
                log.info("another run claimed this output first: planning again with its settings")
    raise JobFailed(f"{config.output.path}: other runs keep claiming it; run the same command again")
