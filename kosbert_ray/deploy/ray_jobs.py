"""A job on a cluster that goes on without us: handed to Ray's job API, followed, attached to again, stopped.

A submission's id says which output it writes and what makes its vectors, so that whoever submits the same job again finds
the run that is under way instead of starting another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import kosbert_ray
from kosbert_ray.config import SECRETS, JobConfig
from kosbert_ray.encoder.source import BUNDLED_PREFIX
from kosbert_ray.errors import JobFailed, UsageError, first_line
from kosbert_ray.storage import is_url

log = logging.getLogger(__name__)

JOB_FILE = "kosbert-ray-job.yaml"
# What is computed, not where, on what and with whose credentials: that may differ from one submission to the next.
IDENTITY = ("model", "input", "output", "slice")
ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
POLL_SECONDS = 2.0
LOST_SECONDS = 300.0  # a cluster that does not answer for so long is given up; the job is not
NOT_READY = "No available agent"  # the job API's word while a head that has just started is not ready for jobs
TAKEN = "already exists"  # its word for a submission id that another submitter was first to use


@dataclass(frozen=True)
class ClusterJob:
    """A command of kosbert-ray as another machine can run it.

    Attributes:
        config: its job file, paths whole.
        command: the arguments before ``--config``.
    """

    config: JobConfig
    command: tuple[str, ...] = ("embed",)

    @staticmethod
    def of(config: JobConfig, command: Sequence[str] = ("embed",)) -> ClusterJob:
        """The job, made fit to be sent.

        Raises:
            UsageError: ``embed`` has no input or output; or there is a secret, which would lie open in the cluster's store.
        """
        for name in SECRETS:
            if getattr(config.storage, name):
                raise UsageError(
                    f"storage.{name}: secrets are not sent along with a job; give the cluster's nodes the AWS variables"
                )
        if "working_dir" in config.ray.runtime_env:
            raise UsageError("ray.runtime_env: working_dir is where the job file goes; leave it out")
        for section, value in (("input", config.input.path), ("output", config.output.path)):
            if not value and command[0] == "embed":
                raise UsageError(
                    f"{section}.path: say where (kosbert-ray submit INPUT OUTPUT, or {section}.path in the job file)"
                )
        whole: dict[str, Any] = {}
        for section, key in (("input", "path"), ("output", "path"), ("model", "name")):
            options = getattr(config, section)
            value = getattr(options, key)
            if key in options.model_fields_set and (section != "model" or Path(value).is_dir()):
                whole[section] = options.model_copy(update={key: _whole(value)})
        return ClusterJob(config.model_copy(update=whole), tuple(command))

    @property
    def name(self) -> str:
        """What all its submissions begin with: ``kosbert-ray-`` and 12 hex digits."""
        said = self.config.model_dump(mode="json", include=set(IDENTITY), exclude_unset=True)
        identity = [self.command, said]
        return f"kosbert-ray-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"

    @property
    def entrypoint(self) -> str:
        """The command line, for a shell of the cluster's."""
        return shlex.join(["python", "-m", "kosbert_ray.cli", *self.command, "--config", JOB_FILE])

    def write(self, folder: Path) -> None:
        """Puts the job file into the folder that the command is run in: what was said, and no defaults.

        A default would count as said there, and could contradict the job of an output that another version has made.
        """
        job = self.config.model_dump(mode="json", exclude={"storage": set(SECRETS), "ray": True}, exclude_unset=True)
        (folder / JOB_FILE).write_text(yaml.safe_dump(job, allow_unicode=True), "utf-8")


def _whole(path: str) -> str:
    return os.path.abspath(path) if path and not is_url(path) and not path.startswith(BUNDLED_PREFIX) else path


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hides Ray's variables, which its client prefers to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class Submissions:
    """The jobs of one cluster.

    Args:
        address: of its job API: ``http://HEAD:8265``.

    Raises:
        JobFailed: it cannot be reached, or refuses.
    """

    def __init__(self, address: str) -> None:
        for handler in logging.getLogger("ray").handlers:  # its loggers set levels of their own
            handler.setLevel(logging.ERROR)
        self.address = address
        with _told(address), _no_other_address():
            self.client = JobSubmissionClient(address)

    def find(self, job: ClusterJob) -> list[JobDetails]:
        """All its submissions, the latest last."""
        with _told(self.address):
            jobs = [item for item in self.client.list_jobs() if (item.submission_id or "").startswith(job.name)]
        return sorted(jobs, key=lambda item: item.start_time or 0)

    def running(self, job: ClusterJob) -> str | None:
        """Its submission that has not ended, if there is one."""
        return _running(self.find(job))

    def submit(self, job: ClusterJob, send_package: bool = True) -> tuple[str, bool]:
        """Starts the job, unless it runs already.

        Args:
            job: what to run.
            send_package: whether the cluster is to run this very kosbert-ray instead of the one installed there.

        Returns:
            The submission's id, and whether it is a new one.

        Raises:
            JobFailed: the cluster cannot be reached, refuses, or is not ready within five minutes.
        """
        until = time.monotonic() + LOST_SECONDS
        waiting = False
        while True:
            found = self.find(job)
            if running := _running(found):
                return running, False
            try:
                return self._submit(job, len(found) + 1, send_package), True
            except Exception as error:
                not_ready = NOT_READY in str(error)
                if not (not_ready or TAKEN in str(error)) or time.monotonic() > until:
                    raise _failed(self.address, error) from error
                if not_ready and not waiting:
                    log.info(f"{self.address}: the cluster takes no jobs yet ({first_line(error)}); trying again")
                    waiting = True
            time.sleep(POLL_SECONDS)

    def _submit(self, job: ClusterJob, number: int, send_package: bool) -> str:
        environment: dict[str, Any] = dict(job.config.ray.runtime_env)
        if send_package:
            modules = environment.get("py_modules", [])
            environment["py_modules"] = [str(Path(kosbert_ray.__file__).parent), *modules]
        with tempfile.TemporaryDirectory() as folder:
            job.write(Path(folder))
            submission: str = self.client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=f"{job.name}-{number}",
                runtime_env=environment | {"working_dir": folder},
                metadata={"output": job.config.output.path},
            )
        return submission

    def details(self, submission: str) -> JobDetails:
        """How a submission is."""
        with _told(self.address):
            return self.client.get_job_info(submission)

    async def follow(self, submission: str) -> AsyncGenerator[str, None]:
        """The pieces of a job's log until it has ended; a lost connection is taken up again where it broke.

        Args:
            submission: its id.

        Raises:
            JobFailed: the cluster has not answered for five minutes. The job goes on.
        """
        written = 0
        lost_since: float | None = None
        while True:
            try:
                tail: Any = self.client.tail_job_logs(submission)  # a generator, though it says that it is an iterator
                async with aclosing(tail) as pieces:
                    seen = 0
                    async for piece in pieces:
                        fresh = piece[max(0, written - seen) :]
                        seen += len(piece)
                        lost_since = None
                        if fresh:
                            written += len(fresh)
                            yield fresh
                job = await asyncio.to_thread(self.client.get_job_info, submission)
                lost_since = None
                if job.status.is_terminal():
                    text = await asyncio.to_thread(self.client.get_job_logs, submission)
                    if text[written:]:
                        yield text[written:]
                    return
            except (RuntimeError, OSError, aiohttp.ClientError) as error:  # requests' are OSErrors
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    log.info(
                        f"{self.address} does not answer ({first_line(error)}); the job goes on, trying to reach it again"
                    )
                elif now - lost_since > LOST_SECONDS:
                    raise JobFailed(
                        f"{self.address}: no answer for {LOST_SECONDS:.0f} s ({first_line(error)}); {submission} goes on "
                        "without us: submit the same again to see how it is"
                    ) from error
            await asyncio.sleep(POLL_SECONDS)

    def stop(self, submission: str) -> None:
        """Ends a job, and waits for its end; what it has committed stays."""
        with _told(self.address):
            self.client.stop_job(submission)
            while not self.client.get_job_status(submission).is_terminal():
                time.sleep(POLL_SECONDS)


def _running(found: list[JobDetails]) -> str | None:
    return str(found[-1].submission_id) if found and not found[-1].status.is_terminal() else None


def exit_code_of(job: JobDetails) -> int:
    """What ``kosbert-ray embed`` ended with on the cluster; 130 for a job that was stopped."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 130
    return job.driver_exit_code or 1


def described(job: JobDetails) -> str:
    """How a submission is, in a line: Ray's message holds the end of its log, which is told where the log is."""
    message = (job.message or "").strip().partition("\n")[0].partition(", last available logs")[0]
    return f"{job.submission_id}: {job.status.value.lower()}{message and f' ({message})'}"


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Ray's errors as one line of ours."""
    try:
        yield
    except Exception as error:
        raise _failed(address, error) from error


def _failed(address: str, error: Exception) -> JobFailed:
    hint = "; is it the dashboard's address, and is RAY_AUTH_MODE=token set if the cluster asks for one?"
    return JobFailed(f"{address}: the cluster's job API cannot be used ({first_line(error)}){hint}")
