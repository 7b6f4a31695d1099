"""``kosbert-ray embed``: runs a job."""

from __future__ import annotations

import argparse
import contextlib
import logging
from typing import TYPE_CHECKING, Any, get_args

from kosbert_ray.cli.common import INTERRUPTED, Commands, ProblemsOfRay, add_config, given, job_config, without_core_noise
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import UsageError
from kosbert_ray.logs import LogFormat, set_format
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig

log = logging.getLogger(__name__)

EXIT_REJECTED = 3
EXIT_TIME_IS_UP = 6
EXIT_UNPUBLISHED = 7
NAMES = {
    "input": "input.path",
    "output": "output.path",
    "model": "model.name",
    "text": "input.text",
    "keep": "input.keep",
    "no_text": "output.text",
    "keep_address": "output.address",
    "prune": "output.removed_inputs",
    "limit": "limit",
    "reuse": "reuse",
    "max_minutes": "max_minutes",
    "log_format": "log_format",
}


class Joined(argparse.Action):
    """Joins the names of an option that is repeated."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        """Appends to what is there."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


EXAMPLES = (
    ("embed a folder", "kosbert-ray embed corpus/ vectors/ --keep id"),
    ("embed a dataset of the Hugging Face hub", "kosbert-ray embed hub://klue/ynat@main vectors/ --text title --keep guid"),
    ("join two columns into one text", "kosbert-ray embed corpus/ vectors/ --text '{title}\\n{body}' --keep id"),
    ("split long texts into chunks", "kosbert-ray embed corpus/ vectors/ --set long_text=chunk"),
    ("leave the texts out of the output", "kosbert-ray embed corpus/ vectors/ --keep id --no-text"),
    ("write bits next to floats", "kosbert-ray embed corpus/ vectors/ --set output.dtype=float32,ubinary"),
    ("try a job on its first 1,000 rows", "kosbert-ray embed corpus/ vectors/ --keep id --limit 1000"),
    ("embed only what an older output lacks", "kosbert-ray embed corpus/ vectors-v2/ --keep id,title --reuse vectors/"),
    ("resume from any folder", "kosbert-ray embed --resume vectors/"),
    ("use a job file", "kosbert-ray embed --config job.yaml --set encoder.precision=bf16"),
    (
        "embed with another model, next to the current output",
        "kosbert-ray embed --into versions/v2 --model intfloat/multilingual-e5-base",
    ),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "embed",
        help="embed a corpus into Parquet shards of vectors",
        description="Embeds every row of INPUT into OUTPUT. After a crash, run the same command again to resume.",
    )
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be embedded and deleted, without doing it")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run, interrupted=f"{INTERRUPTED}: committed slices stay; run the same command again to resume")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that describe a job."""
    parser.add_argument("input", nargs="?", metavar="INPUT", help="{input.path}")
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="{output.path}")
    parser.add_argument(
        "--into",
        metavar="FOLDER/NAME",
        help="create NAME next to FOLDER's current output, reusing its settings except those given here",
    )
    parser.add_argument(
        "--resume", metavar="OUTPUT", help="repeat the last run's command from any folder: same input, model and options"
    )
    parser.add_argument("--model", metavar="NAME", help="{model.name}")
    parser.add_argument("--text", metavar="COLUMN", help="{input.text}")
    parser.add_argument("--keep", metavar="COLUMNS", action=Joined, help="{input.keep}")
    parser.add_argument(
        "--no-text",
        action="store_const",
        const=False,
        help="do not copy the texts to the output (output.text=false)",
    )
    parser.add_argument("--keep-address", action="store_const", const=True, help="{output.address}")
    parser.add_argument(
        "--prune",
        action="store_const",
        const="delete",
        help="delete the shards of input files that were removed (output.removed_inputs=delete)",
    )
    parser.add_argument("--limit", metavar="N", help="{limit}")
    parser.add_argument("--max-minutes", metavar="M", help="{max_minutes}")
    parser.add_argument("--reuse", metavar="OUTPUT", help="{reuse}")
    parser.add_argument("--log-format", choices=get_args(LogFormat), help="{log_format}")
    add_config(parser)


def config_of(arguments: argparse.Namespace, expand: bool = True) -> JobConfig:
    """The job that the arguments describe; raises UsageError also if ``--into`` finds no job to reuse.

    Args:
        arguments: of the command.
        expand: whether to replace variables in the job file; false for a job that runs elsewhere.
    """
    from kosbert_ray.config import load_config

    config = job_config(arguments, NAMES, expand)
    if arguments.resume:
        return _resumed(arguments, config)
    if not arguments.into:
        return config
    if arguments.output:
        raise UsageError("--into: names the output already; leave out OUTPUT")
    from kosbert_ray.model.options import PROMPT_OPTIONS
    from kosbert_ray.outputs.versions import successor

    defaults = successor(config, arguments.into)
    if {"name", "revision"} & config.model.model_fields_set:  # another model has its own prompt and length
        del defaults["model"]
    elif config.model.model_fields_set.intersection(PROMPT_OPTIONS):
        for name in PROMPT_OPTIONS:
            defaults["model"].pop(name, None)
    return load_config(arguments.config, arguments.set, given(arguments, NAMES), defaults)


def _resumed(arguments: argparse.Namespace, config: JobConfig) -> JobConfig:
    """The last run's job, with the options given now."""
    from kosbert_ray.config import load_config
    from kosbert_ray.outputs.resumption import last_command

    if arguments.input or arguments.output or arguments.into:
        raise UsageError("--resume: takes the input from the last run; leave out INPUT, OUTPUT and --into")
    place = {"output.path": arguments.resume}
    there = config.model_copy(update={"output": config.output.model_copy(update={"path": arguments.resume})})
    tree = last_command(there)
    log.info(f"resuming {arguments.resume}: input {tree['input']['path']}")
    return load_config(arguments.config, arguments.set, {**given(arguments, NAMES), **place}, tree)


def _run(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    set_format(config.log_format)
    from kosbert_ray.run.lifecycle import embed, preview

    if arguments.dry_run:
        for line in preview(config).lines():
            print(line)
        return 0
    from kosbert_ray.outputs.publish import after_run

    with without_core_noise(), contextlib.redirect_stdout(ProblemsOfRay()):
        summary = embed(config, publisher=after_run)
    totals, new = summary.totals, summary.new
    if new.slices:
        log.info(summary.speed())
    if truncation := new.truncation(summary.kinds):
        log.warning(truncation)
    if empty := new.empty_vectors():
        log.warning(f"{empty}: the model gave no value, or none of at least output.sparse_threshold")
    if deleted := summary.deleted():
        log.info(deleted)
    with contextlib.suppress(BrokenPipeError):
        print(summary.result(), flush=True)
    if summary.bound == "limit":
        log.info("to embed the rest, run the same command without --limit, or kosbert-ray embed --resume OUTPUT")
        return 0
    if summary.bound:
        log.info("run the same command again to embed the rest")
        return EXIT_TIME_IS_UP
    if not summary.within_limit:
        limit = f"more than max_rejected={config.max_rejected:g} allows"
        remedy = (
            "the output was completed with another limit"
            if summary.complete
            else "so _SUCCESS was not written; fix the input or raise max_rejected, and run the same command again"
        )
        log.error(f"{totals.rejected:,} of {plural(totals.input_rows, 'row', 'were')} rejected, {limit}; {remedy}")
        return EXIT_REJECTED
    for failure in summary.unpublished:
        log.error(failure)
    return EXIT_UNPUBLISHED if summary.unpublished else 0
