"""Airflow 3: the job as a task of a DAG. The task hands it to a Ray cluster and waits, in a trigger if it is deferrable.

A try that finds the job running attaches to it; one that finds it dead goes on where it stopped. Whoever marks the task
failed, clears it or lets it run into its timeout stops the job; what it has committed stays.
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
    """Runs a command of kosbert-ray on a Ray cluster, and fails as it fails; a wrong option is not tried again.

    Args:
        command: the command with its arguments: ``["verify", "s3://bucket/vectors"]`` (templated).
        address: the cluster's job API: ``http://HEAD:8265`` (templated).
        config: a job file, or what one would hold (templated).
        send_package: whether the cluster is to run this very kosbert-ray instead of the one installed there.
        deferrable: whether to wait in the triggerer, without a worker's slot; by default as Airflow is configured.
        kwargs: BaseOperator's.
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
        """Submits the job, or finds it running, and waits for its end; gives what :meth:`result` does."""
        job = self._job()
        submissions = Submissions(self.address)
        submission, new = submissions.submit(job, self.send_package)
        self.log.info("%s: %s", submission, "submitted" if new else "runs already")
        if self.deferrable:
            trigger = SubmissionTrigger(self.address, submission)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=self.execution_timeout)
        asyncio.run(log_lines(submissions, submission, self.log.info))
        return self._end(submissions, submission, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Goes on when the trigger has seen the job's end."""
        return self._end(Submissions(self.address), str(event["submission"]), context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's, but a task that waited too long stops its job."""
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
        """What becomes of the task's XCom."""
        del context

    def _options(self) -> dict[str, Any]:
        """Options of the job file that the operator has parameters for, by dotted name."""
        return {}

    def _configured(self) -> JobConfig:
        return load_config(self.config, (), self._options())

    def _job(self) -> ClusterJob:
        try:
            return ClusterJob.of(self._configured(), [str(part) for part in self.command])
        except UsageError as error:
            raise AirflowFailException(str(error)) from error

    def _end(self, submissions: Submissions, submission: str, context: Context) -> Any:
        job = submissions.details(submission)
        code = exit_code_of(job)
        if code:
            kind = AirflowFailException if code == EXIT_USAGE else AirflowException
            raise kind(described(job))
        return self.result(context)


class KosbertEmbedOperator(KosbertOperator):
    """Embeds a corpus on a Ray cluster: ``kosbert-ray embed`` as a task.

    Its XCom is the content of the output's ``_SUCCESS``: the run's id, the totals and the manifest. Its outlet, unless
    others are given, is an asset of the output's address, as far as that is the same for each run of the DAG.

    Args:
        input_path: file, folder, glob or URL (templated: ``s3://bucket/corpus/{{ ds }}/``).
        output_path: folder or URL (templated).
        model: hub name, folder, URL or ``bundled:NAME`` (templated).
        kwargs: those of :class:`KosbertOperator` but ``command``.
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
        """The content of ``_SUCCESS``; each outlet's event carries it too, with the output's address."""
        config = self._configured()
        success = Ledger(open_output(config)).success()
        if success is None:
            raise AirflowException(
                f"{config.output.path}: the job has ended well, but there is no _SUCCESS to be seen here"
            )
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {"output": config.output.path, **success}
        return success

    def _options(self) -> dict[str, Any]:
        given = {"input.path": self.input_path, "output.path": self.output_path, "model.name": self.model}
        return {name: value for name, value in given.items() if value is not None}


class SubmissionTrigger(BaseTrigger):  # type: ignore[misc]
    """Passes a submission's log on to the task's until it has ended; a task that is killed meanwhile stops it.

    Args:
        address: the cluster's job API.
        submission: its id.
    """

    def __init__(self, address: str, submission: str) -> None:
        super().__init__()
        self.address, self.submission = address, submission

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How to make it again, in the triggerer."""
        return f"{__name__}.{type(self).__qualname__}", {"address": self.address, "submission": self.submission}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the job has ended."""
        submissions = await asyncio.to_thread(Submissions, self.address)
        await log_lines(submissions, self.submission, self.log.info)
        yield TriggerEvent({"submission": self.submission})

    async def on_kill(self) -> None:
        """Stops the job."""

        def stop() -> None:
            try:
                Submissions(self.address).stop(self.submission)
            except KosbertError as error:
                self.log.error("%s cannot be stopped: %s", self.submission, error)

        await asyncio.to_thread(stop)


async def log_lines(submissions: Submissions, submission: str, info: Callable[..., None]) -> None:
    """Passes a job's log on, line by line, until it has ended.

    Args:
        submissions: the cluster's jobs.
        submission: the job's id.
        info: takes a line, after ``"%s"``.
    """
    rest = ""
    async with aclosing(submissions.follow(submission)) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                info("%s", line)
    if rest:
        info("%s", rest)
