"""Jobs on a Ray cluster, by Ray's job API: submit, follow the log, reattach, stop.

A submission id is derived from the output and everything that affects the vectors. Submitting the same job again
therefore finds the running submission instead of starting a second one.
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
from kosbert_ray.config import JobConfig
from kosbert_ray.errors import JobFailed, UsageError, first_line
from kosbert_ray.model.source import BUNDLED_PREFIX
from kosbert_ray.settings import VARIABLE, secrets_in
from kosbert_ray.storage import is_url

log = logging.getLogger(__name__)

JOB_FILE = "kosbert-ray-job.yaml"
# Options that define what is computed. Hardware, addresses and credentials may differ between submissions of one job.
IDENTITY = ("model", "input", "output", "slice")
ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
POLL_SECONDS = 2.0
LOST_SECONDS = 300.0  # stop waiting for a cluster that has not answered for this long
NOT_READY = "No available agent"  # in the job API's error while a new head node is still starting
TAKEN = "already exists"  # in the job API's error when another submitter has used the id first


@dataclass(frozen=True)
class ClusterJob:
    """A kosbert-ray command that another machine can run.

    Attributes:
        config: options of the job file, with absolute paths.
        command: arguments before ``--config``.
    """

    config: JobConfig
    command: tuple[str, ...] = ("embed",)

    @staticmethod
    def of(config: JobConfig, command: Sequence[str] = ("embed",)) -> ClusterJob:
        """Prepares a job for submission: makes its paths absolute and checks that it can be sent.

        Raises:
            UsageError: ``embed`` has no input or output, or the config holds a secret: the cluster stores jobs unencrypted.
        """
        for name in secrets_in(config):
            raise UsageError(f"{name}: secrets are not sent to a cluster; set the AWS variables on its nodes instead")
        if "working_dir" in config.ray.runtime_env:
            raise UsageError("ray.runtime_env: working_dir is reserved for the job file; remove it")
        for section, value in (("input", config.input.path), ("output", config.output.path)):
            if not value and command[0] == "embed":
                raise UsageError(
                    f"{section}.path: missing; run kosbert-ray submit INPUT OUTPUT, or set {section}.path in the job file"
                )
        absolute: dict[str, Any] = {}
        for section, key in (("input", "path"), ("output", "path"), ("model", "name")):
            options = getattr(config, section)
            value = getattr(options, key)
            if key in options.model_fields_set and (section != "model" or Path(value).is_dir()):
                absolute[section] = options.model_copy(update={key: _absolute(value)})
        return ClusterJob(config.model_copy(update=absolute), tuple(command))

    @property
    def name(self) -> str:
        """Common prefix of the ids of its submissions: ``kosbert-ray-`` and 12 hex digits."""
        options = self.config.model_dump(mode="json", include=set(IDENTITY), exclude_unset=True)
        identity = [self.command, options]
        return f"kosbert-ray-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"

    @property
    def entrypoint(self) -> str:
        """Command line for a shell on the cluster."""
        return shlex.join(["python", "-m", "kosbert_ray.cli", *self.command, "--config", JOB_FILE])

    def write(self, folder: Path) -> None:
        """Writes the job file into the command's working directory, with only the options that were set.

        The cluster would treat a written default as set, and it could then conflict with an output made by another version.
        """
        job = self.config.as_written(self.config.model_dump(mode="json", exclude={"ray"}, exclude_unset=True))
        (folder / JOB_FILE).write_text(yaml.safe_dump(job, allow_unicode=True), "utf-8")


def _absolute(path: str) -> str:
    if not path or is_url(path) or path.startswith(BUNDLED_PREFIX) or VARIABLE.match(path):
        return path
    return os.path.abspath(path)


@contextmanager
def _without_address_variables() -> Iterator[None]:
    """Hides Ray's address variables, which would override the address that its client is given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class Submissions:
    """The jobs of one cluster.

    Args:
        address: job API of the cluster: ``http://HEAD:8265``.

    Raises:
        JobFailed: the cluster cannot be reached, or refuses the connection.
    """

    def __init__(self, address: str) -> None:
        for handler in logging.getLogger("ray").handlers:  # Ray's loggers override a level set on "ray"
            handler.setLevel(logging.ERROR)
        self.address = address
        with _ray_errors(address), _without_address_variables():
            self.client = JobSubmissionClient(address)

    def find(self, job: ClusterJob) -> list[JobDetails]:
        """Returns all submissions of a job, oldest first."""
        with _ray_errors(self.address):
            jobs = [item for item in self.client.list_jobs() if (item.submission_id or "").startswith(job.name)]
        return sorted(jobs, key=lambda item: item.start_time or 0)

    def running(self, job: ClusterJob) -> str | None:
        """Returns the id of the job's running submission, if any."""
        return _running(self.find(job))

    def submit(self, job: ClusterJob, send_package: bool = True) -> tuple[str, bool]:
        """Starts the job, unless it is already running.

        Args:
            job: the job to run.
            send_package: send this version of kosbert-ray instead of using the one installed on the cluster.

        Returns:
            The id of the submission, and True if it is new.

        Raises:
            JobFailed: the cluster cannot be reached, refuses the job, or is not ready within five minutes.
        """
        deadline = time.monotonic() + LOST_SECONDS
        waiting = False
        while True:
            found = self.find(job)
            if running := _running(found):
                return running, False
            try:
                return self._submit(job, len(found) + 1, send_package), True
            except Exception as error:
                not_ready = NOT_READY in str(error)
                if not (not_ready or TAKEN in str(error)) or time.monotonic() > deadline:
                    raise _failed(self.address, error) from error
                if not_ready and not waiting:
                    log.info(f"{self.address}: the cluster does not accept jobs yet ({first_line(error)}); retrying")
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
        """Returns the state of a submission."""
        with _ray_errors(self.address):
            return self.client.get_job_info(submission)

    async def follow(self, submission: str) -> AsyncGenerator[str, None]:
        """Yields a job's log in pieces until the job ends. After a lost connection, the log continues where it broke off.

        Args:
            submission: id of the submission.

        Raises:
            JobFailed: the cluster has not answered for five minutes. The job may still be running.
        """
        written = 0
        lost_since: float | None = None
        while True:
            try:
                tail: Any = self.client.tail_job_logs(submission)  # annotated as an iterator, but an async generator
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
            except (RuntimeError, OSError, aiohttp.ClientError) as error:  # errors of requests are OSErrors
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    log.info(f"{self.address} does not answer ({first_line(error)}); reconnecting, the job is not affected")
                elif now - lost_since > LOST_SECONDS:
                    raise JobFailed(
                        f"{self.address}: no answer for {LOST_SECONDS:.0f} s ({first_line(error)}); {submission} may "
                        "still be running: run the same command to reattach"
                    ) from error
            await asyncio.sleep(POLL_SECONDS)

    def stop(self, submission: str) -> None:
        """Stops a job and waits until it has ended. Committed shards are kept."""
        with _ray_errors(self.address):
            self.client.stop_job(submission)
            while not self.client.get_job_status(submission).is_terminal():
                time.sleep(POLL_SECONDS)


def _running(found: list[JobDetails]) -> str | None:
    return str(found[-1].submission_id) if found and not found[-1].status.is_terminal() else None


def exit_code_of(job: JobDetails) -> int:
    """Returns the exit code of the command on the cluster; 130 if the job was stopped."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 130
    return job.driver_exit_code or 1


def described(job: JobDetails) -> str:
    """Describes a submission's state in one line."""
    # Ray appends the end of the log to its message; the log is shown elsewhere.
    message = (job.message or "").strip().partition("\n")[0].partition(", last available logs")[0]
    return f"{job.submission_id}: {job.status.value.lower()}{message and f' ({message})'}"


@contextmanager
def _ray_errors(address: str) -> Iterator[None]:
    """Converts Ray's errors to JobFailed with a one-line message."""
    try:
        yield
    except Exception as error:
        raise _failed(address, error) from error


def _failed(address: str, error: Exception) -> JobFailed:
    hint = "check that this is the dashboard's address, and set RAY_AUTH_MODE=token if the cluster requires a token"
    return JobFailed(f"{address}: cannot use the cluster's job API ({first_line(error)}); {hint}")
