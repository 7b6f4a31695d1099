"""``kosbert-ray index``: builds an index for search."""

from __future__ import annotations

import argparse
import logging

from kosbert_ray.cli.common import (
    READS_OUTPUT,
    Commands,
    add_config,
    add_json,
    add_output,
    output_config,
    print_json,
    size_of,
)
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import data_size, duration, plural

log = logging.getLogger(__name__)

EXAMPLES = (
    ("index an output", "kosbert-ray index vectors/"),
    ("find nearly every row", "kosbert-ray index vectors/ --recall 0.99"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "index",
        help="build an index, with which search reads only what it finds",
        description="Builds an index of the complete OUTPUT in OUTPUT/_index (FAISS), or adds the rows of later runs to "
        "it. search uses it while it is that of the output's last run.",
    )
    add_output(parser)
    parser.add_argument("--recall", type=float, default=0.95, metavar="R", help="recall@10 to reach (default: 0.95)")
    parser.add_argument(
        "--memory", default="16GB", metavar="SIZE", help="memory for the index; with less, its codes are coarser (16GB)"
    )
    parser.add_argument("--column", metavar="NAME", help="the column of vectors, if there are several")
    parser.add_argument("--rebuild", action="store_true", help="build all of it again")
    add_json(parser)
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run, interrupted="interrupted: the index is as it was before")


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    memory = size_of("--memory", arguments.memory) or 0
    from kosbert_ray.outputs.index.build import build
    from kosbert_ray.outputs.output import Output

    output = Output(config)
    found = build(output, arguments.recall, memory, arguments.rebuild, arguments.column)
    record = found.record
    if record.recall < arguments.recall:
        log.warning(
            f"recall@10 is {record.recall:.3f} with all lists: the codes do not tell nearer rows apart; use search --exact "
            "where that matters"
        )
    if arguments.json:
        print_json(found)
        return 0
    gone = f", {found.masked:,} of earlier runs masked" if found.masked else ""
    print(
        f"indexed: {plural(found.rows, 'row')} ({found.added:,} added{gone}) in {duration(found.seconds)}: {record.kind}, "
        f"{record.probes:,} of {plural(record.lists, 'list')} for each query, recall@10 {record.recall:.3f}, "
        f"{data_size(record.bytes)}"
    )
    return 0
