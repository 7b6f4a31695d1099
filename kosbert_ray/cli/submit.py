"""``kosbert-ray submit``: runs a job on a cluster, through Ray's job API."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kosbert_ray.cli import embed
from kosbert_ray.cli.common import EXIT_INTERRUPTED, Commands
from kosbert_ray.cli.examples import add_examples

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig
    from kosbert_ray.deploy.ray_jobs import Submissions

log = logging.getLogger(__name__)

EXAMPLES = (("run on a cluster", "kosbert-ray submit s3://bucket/in/ s3://bucket/out/ --address http://head:8265"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "submit",
        help="run a job on a Ray cluster, independently of this machine",
        description="Submits the job and follows its log. Ctrl-C leaves it running. Run the same command again to reattach "
        "or to resume after a failure.",
    )
    embed.add_options(parser)
    parser.add_argument(
        "--address", required=True, metavar="URL", help="URL of the cluster's job API, such as http://HEAD:8265"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("--installed", action="store_true", help="run the kosbert-ray installed on the cluster")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="only show the status of the job")
    instead.add_argument("--stop", action="store_true", help="stop the job; committed slices stay")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = embed.config_of(arguments, expand=False)
    from kosbert_ray.deploy.ray_jobs import ClusterJob, Submissions, described, exit_code_of

    job = ClusterJob.of(config)
    submissions = Submissions(arguments.address)
    if arguments.stop:
        running = submissions.running(job)
        if running:
            submissions.stop(running)
        print(f"stopped: {running}" if running else "not running")
        return 0
    if arguments.status:
        found = submissions.find(job)
        for item in found:
            print(described(item))
        if not found:
            print("never submitted")
        return 0
    submission, new = submissions.submit(job, send_package=not arguments.installed)
    log.info(f"{submission}: {'submitted' if new else 'already running, reattached'}")
    if arguments.no_wait:
        return 0
    try:
        asyncio.run(_print_log(submissions, submission))
    except KeyboardInterrupt:
        log.info(f"{submission} is still running. Run the same command to reattach, or add --stop to cancel it")
        return EXIT_INTERRUPTED
    ended = submissions.details(submission)
    code = exit_code_of(ended)
    if code:
        log.error(described(ended))
    return code


def follow(address: str, config: JobConfig, command: Sequence[str]) -> int:
    """Runs a kosbert-ray command on a cluster, prints its output, and returns its exit code."""
    from kosbert_ray.deploy.ray_jobs import ClusterJob, Submissions, exit_code_of

    submissions = Submissions(address)
    submission, _ = submissions.submit(ClusterJob.of(config, command), send_package=True)
    asyncio.run(_print_log(submissions, submission))
    return exit_code_of(submissions.details(submission))


async def _print_log(submissions: Submissions, submission: str) -> None:
    async with contextlib.aclosing(submissions.follow(submission)) as pieces:
        async for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
