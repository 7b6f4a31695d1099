"""Operators for Airflow 3 that run kosbert-ray on a Ray cluster and wait, in the triggerer if deferrable.

A retry reattaches to a running job, or resumes one that has died. Marking the task failed, clearing it or reaching its
timeout stops the job. Committed shards are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout
from airflow.triggers.base import BaseTrigger, TriggerEvent

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.deploy.ray_jobs import ClusterJob, Submissions, described, exit_code_of
from kosbert_ray.errors import KosbertError, UsageError
from kosbert_ray.job import open_output
from kosbert_ray.shards.ledger import Ledger

if TYPE_CHECKING:
    from airflow.sdk import Context

EXIT_USAGE = UsageError.exit_code
TEMPLATE = "{{"


class KosbertOperator(BaseOperator):  # type: ignore[misc]
    """Runs a kosbert-ray command on a Ray cluster. Fails if the command fails, without retries if an option is wrong.

    Args:
        command: command and arguments: ``["verify", "s3://bucket/vectors"]`` (templated).
        address: job API of the cluster: ``http://HEAD:8265`` (templated).
        config: path of a job file, or its content as a mapping (templated).
        send_package: send the kosbert-ray installed here instead of using the one installed on the cluster.
        deferrable: wait in the triggerer, without holding a worker slot. Defaults to Airflow's configuration.
        kwargs: arguments of ``BaseOperator``.
    """

    template_fields: Sequence[str] = ("command", "address", "config")

    def __init__(
        self,
        *,
        command: Sequence[str],
        address: str,
        config: str | Mapping[str, Any] | None = None,
        send_package: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command = command
        self.address = address
        self.config = config
        self.send_package = send_package
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Submits the job, or reattaches to it, and waits until it ends. Returns :meth:`result`."""
        job = self._job()
        submissions = Submissions(self.address)
        submission, new = submissions.submit(job, self.send_package)
        self.log.info("%s: %s", submission, "submitted" if new else "already running, reattached")
        if self.deferrable:
            trigger = SubmissionTrigger(self.address, submission)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=self.execution_timeout)
        asyncio.run(log_lines(submissions, submission, self.log.info))
        return self._end(submissions, submission, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Completes the task after the trigger has reported the end of the job."""
        return self._end(Submissions(self.address), str(event["submission"]), context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resumes a deferred task; if the deferral timed out, stops the job first."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.on_kill()
            raise

    def on_kill(self) -> None:
        """Stops the job."""
        submissions = Submissions(self.address)
        if running := submissions.running(self._job()):
            self.log.info("stopping %s", running)
            submissions.stop(running)

    def result(self, context: Context) -> Any:
        """Returns the value of the task's XCom."""
        del context

    def _options(self) -> dict[str, Any]:
        """Job options set by the operator's parameters, by dotted name."""
        return {}

    def _job_config(self) -> JobConfig:
        return load_config(self.config, (), self._options())

    def _job(self) -> ClusterJob:
        try:
            return ClusterJob.of(self._job_config(), [str(part) for part in self.command])
        except UsageError as error:
            raise AirflowFailException(str(error)) from error

    def _end(self, submissions: Submissions, submission: str, context: Context) -> Any:
        job = submissions.details(submission)
        code = exit_code_of(job)
        if code:
            exception = AirflowFailException if code == EXIT_USAGE else AirflowException
            raise exception(described(job))
        return self.result(context)


class KosbertEmbedOperator(KosbertOperator):
    """Embeds a corpus on a Ray cluster, like ``kosbert-ray embed``.

    The XCom is the content of the output's ``_SUCCESS``: run id, totals and manifest. Unless ``outlets`` are given, the
    task has one: an asset whose URI is ``output_path`` up to its first template expression.

    Args:
        input_path: file, folder, glob or URL (templated: ``s3://bucket/corpus/{{ ds }}/``).
        output_path: folder or URL (templated).
        model: hub name, folder, URL or ``bundled:NAME`` (templated).
        kwargs: arguments of :class:`KosbertOperator` except ``command``.
    """

    template_fields: Sequence[str] = (*KosbertOperator.template_fields, "input_path", "output_path", "model")

    def __init__(
        self, *, input_path: str | None = None, output_path: str | None = None, model: str | None = None, **kwargs: Any
    ) -> None:
        fixed = (output_path or "").partition(TEMPLATE)[0]
        if fixed and "outlets" not in kwargs:
            kwargs["outlets"] = [Asset(uri=fixed if "://" in fixed else f"file://{fixed}")]
        super().__init__(command=["embed"], **kwargs)
        self.input_path = input_path
        self.output_path = output_path
        self.model = model

    def result(self, context: Context) -> dict[str, Any]:
        """Returns the content of ``_SUCCESS`` and adds it, with the output path, to each outlet's asset event."""
        config = self._job_config()
        success = Ledger(open_output(config)).success()
        if success is None:
            raise AirflowException(
                f"{config.output.path}: the job succeeded, but Airflow sees no _SUCCESS there; check that the cluster and "
                "Airflow reach the same storage"
            )
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {"output": config.output.path, **success}
        return success

    def _options(self) -> dict[str, Any]:
        given = {"input.path": self.input_path, "output.path": self.output_path, "model.name": self.model}
        return {name: value for name, value in given.items() if value is not None}


class SubmissionTrigger(BaseTrigger):  # type: ignore[misc]
    """Copies a submission's log to the task log until the job ends. Killing the task stops the job.

    Args:
        address: job API of the cluster.
        submission: id of the submission.
    """

    def __init__(self, address: str, submission: str) -> None:
        super().__init__()
        self.address, self.submission = address, submission

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Returns the class path and arguments from which the triggerer recreates the trigger."""
        return f"{__name__}.{type(self).__qualname__}", {"address": self.address, "submission": self.submission}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yields one event when the job has ended."""
        submissions = await asyncio.to_thread(Submissions, self.address)
        await log_lines(submissions, self.submission, self.log.info)
        yield TriggerEvent({"submission": self.submission})

    async def on_kill(self) -> None:
        """Stops the job."""

        def stop() -> None:
            try:
                Submissions(self.address).stop(self.submission)
            except KosbertError as error:
                self.log.error("cannot stop %s: %s", self.submission, error)

        await asyncio.to_thread(stop)


async def log_lines(submissions: Submissions, submission: str, info: Callable[..., None]) -> None:
    """Logs each line of a job's log until the job ends.

    Args:
        submissions: jobs of the cluster.
        submission: id of the submission.
        info: ``info`` method of a logger, called with ``"%s"`` and a line.
    """
    rest = ""
    async with aclosing(submissions.follow(submission)) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                info("%s", line)
    if rest:
        info("%s", rest)
