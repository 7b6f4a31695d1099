"""``kosbert-ray status``: shows the progress of a job."""

from __future__ import annotations

import argparse
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, add_json, add_output, output_config, print_json
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import data_size, duration, plural
from kosbert_ray.vectors.kinds import DENSE, named

if TYPE_CHECKING:
    from kosbert_ray.outputs.status import Status

log = logging.getLogger(__name__)

EXAMPLES = (
    ("show progress from any machine", "kosbert-ray status s3://bucket/vectors/"),
    ("wait for the end of a run", "kosbert-ray status s3://bucket/vectors/ --wait"),
)
# Exit codes by state; 1 and 2 are errors of the command itself.
EXIT_CODES = {"done": 0, "running": 4, "stopped": 5}
POLL_SECONDS = 10.0


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "status",
        help="show the progress of a job, from any machine",
        description="Reads the ledger of OUTPUT and shows what is committed, which runs are writing, how fast they are, "
        "and how much time is left. Exits with 0 if the job is done, 4 if it is running and 5 if it was stopped.",
    )
    add_output(parser)
    parser.add_argument("--wait", action="store_true", help="wait until no run is writing to it")
    add_json(parser)
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.status import status

    found = status(Output(config))
    while arguments.wait and found.state == "running":
        log.info(_progress(found))
        time.sleep(POLL_SECONDS)
        found = status(Output(config))
    if arguments.json:
        print_json(found)
    else:
        for line in _lines(found):
            print(line)
    return EXIT_CODES[found.state]


def _progress(found: Status) -> str:
    doing = f"; {found.doing}" if found.doing else ""
    return f"running: {plural(found.totals.rows, 'row')}{_share(found)}{_speed(found)}{doing}"


def _share(found: Status) -> str:
    return "" if found.share is None else f", {found.share:.1%} of the input"


def _speed(found: Status) -> str:
    rate = f", {found.tokens_per_second:,.0f} tokens/s" if found.tokens_per_second else ""
    left = "" if found.seconds_left is None else f", {duration(found.seconds_left)} left"
    return f"{rate}{left}"


def _lines(found: Status) -> list[str]:
    totals = found.totals
    lines = [
        f"{found.output}: {found.state}{_share(found)}",
        f"{found.model} on {found.input}" + ("" if found.kinds == (DENSE,) else f"; vectors: {named(found.kinds)}"),
        f"{plural(totals.slices, 'shard')}, {plural(totals.rows, 'row')}, "
        f"{plural(totals.tokens, 'token')} ({totals.encoded_tokens:,} encoded), "
        f"{data_size(totals.output_bytes)}",
        ", ".join(part for part in (totals.long_texts(), f"{totals.rejected:,} rejected") if part),
    ]
    lines += filter(None, [totals.empty_vectors()])
    lines += [f"warning: {notice}" for notice in found.notices]
    if found.skipped_files:
        lines.append(f"skipped {plural(found.skipped_files, 'file')} of the input with an unsupported extension")
    for holder in found.holders:
        lines.append(
            f"written by run {holder.run} on {holder.host} (process {holder.pid}), started {duration(holder.age)} ago"
        )
    for table, current in found.tables.items():
        behind = "" if current else f", of an earlier run (kosbert-ray publish {found.output} {table})"
        lines.append(f"published as {table}{behind}")
    if found.doing:
        lines.append(found.doing)
    if found.tokens_per_second:
        lines.append(f"{plural(found.run.rows, 'row')} in this run{_speed(found)}")
    if found.finished_at and found.finished_seconds:
        when = datetime.fromtimestamp(found.finished_at).astimezone()
        rate = f", {found.finished_rows_per_second:,.0f} rows/s" if found.finished_rows_per_second else ""
        lines.append(
            f"finished {when:%Y-%m-%d %H:%M %Z} after {duration(found.finished_seconds)}: "
            f"{plural(found.finished_rows, 'row')}{rate}"
        )
    if len(found.nodes) > 1:
        whole = max(1, sum(found.nodes.values()))
        lines += [
            f"{tokens / whole:6.1%} of the tokens encoded on {node or 'a machine whose receipts were lost in a kill'}"
            for node, tokens in sorted(found.nodes.items())
        ]
    if found.state == "stopped":
        lines.append(_remedy(found.failed_files))
    return lines


def _remedy(failed_files: int) -> str:
    if failed_files:
        return (
            f"the last run failed on {plural(failed_files, 'input file')} and committed all others; "
            "fix or remove these files and run the same command again"
        )
    return "no run is writing to it; run the same command (without --limit) or kosbert-ray embed --resume OUTPUT"
