"""``kosbert-ray publish``: publishes an output as a table of Iceberg or Delta."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, add_json, add_output, output_config, print_json
from kosbert_ray.cli.examples import add_examples

EXAMPLES = (
    ("publish as a Delta table, whose log lies in the output", "kosbert-ray publish vectors/ delta"),
    ("publish as an Iceberg table", "kosbert-ray publish s3://bucket/vectors iceberg://prod/search.vectors"),
    ("show what would change", "kosbert-ray publish vectors/ delta --dry-run"),
    ("stop keeping shards for a table that is gone", "kosbert-ray publish vectors/ delta --forget"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "publish",
        help="publish an output as an Iceberg or Delta table",
        description="Registers the shards of the complete OUTPUT in a table, in one commit and without a copy. A later "
        "publish of the same output adds the new shards and removes those that are gone; embed deletes none that a table "
        "names.",
    )
    add_output(parser)
    parser.add_argument("table", metavar="TABLE", help="delta, or iceberg://CATALOG/NAMESPACE.TABLE")
    parser.add_argument("--retain", metavar="TIME", help="{output.retain}; default: 7d")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="show the shards to add and remove; change nothing")
    either.add_argument(
        "--forget", action="store_true", help="stop keeping shards for TABLE, which can then no longer be read"
    )
    add_json(parser)
    add_config(parser, uses=(*READS_OUTPUT, "output.retain"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run, interrupted="interrupted: run the same command again to complete the publish")


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments, retain="output.retain")
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.publish.core import Forgotten, Published, forget, publish

    output = Output(config)
    found: Forgotten | Published
    if arguments.forget:
        found = forget(output, arguments.table)
    else:
        found = publish(output, arguments.table, config.output.retain, arguments.dry_run)
    if arguments.json:
        print_json(found)
    else:
        print(found.line())
    return 0
