"""``kosbert-ray load``: loads an output into a database."""

from __future__ import annotations

import argparse
import re

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, add_json, add_output, output_config, print_json
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import data_size, plural

EXAMPLES = (
    ("load into PostgreSQL with pgvector", "kosbert-ray load vectors/ postgresql://user@host/db --table documents"),
    ("show what would change", "kosbert-ray load vectors/ postgresql://user@host/db --table documents --dry-run"),
    (
        "load into Qdrant, ids from a column",
        "kosbert-ray load vectors/ qdrant://host:6334 --table documents --id doc_id",
    ),
    (
        "load two of several columns of vectors",
        "kosbert-ray load vectors/ postgresql://user@host/db --column embedding --column sparse",
    ),
    ("write a LanceDB table", "kosbert-ray load vectors/ lancedb:s3://bucket/lance --table documents"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "load",
        help="load an output into PostgreSQL, Qdrant or LanceDB",
        description="Loads the complete OUTPUT into a table: every row once. A later load of the same output adds the new "
        "shards and deletes the rows of shards that are gone. Passwords come from the environment.",
    )
    add_output(parser)
    parser.add_argument("destination", metavar="DESTINATION", help="postgresql://, qdrant:// or lancedb: address")
    parser.add_argument("--table", metavar="NAME", help="table or collection (default: the output folder's name)")
    parser.add_argument("--id", metavar="COLUMN", help="kept column that identifies a row (default: UUIDs)")
    parser.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        default=[],
        help="a column of vectors; can be repeated (default: the first of each kind)",
    )
    parser.add_argument("--no-index", action="store_true", help="build no index for search")
    parser.add_argument("--strip-nul", action="store_true", help="remove NUL from texts, which PostgreSQL cannot store")
    parser.add_argument("--dry-run", action="store_true", help="show the rows to add, replace and remove; change nothing")
    add_json(parser)
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run, interrupted="interrupted: run the same command again to complete the load")


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.load.base import LoadOptions, Source
    from kosbert_ray.outputs.load.core import load
    from kosbert_ray.outputs.output import Output

    output = Output(config)
    options = LoadOptions(
        name=arguments.table or _table(output.storage.address),
        id_column=arguments.id,
        columns=tuple(arguments.column),
        index=not arguments.no_index,
        strip_nul=arguments.strip_nul,
    )
    found = load(Source.of(output, options), arguments.destination, arguments.dry_run)
    if arguments.json:
        print_json(found)
        return 0
    verb = "loaded" if found.done else "to load"
    changes = f"{plural(found.added, 'row')} added, {found.replaced:,} replaced, {found.removed:,} removed"
    skipped = "".join(f"; {plural(rows, 'row')} left out ({reason})" for reason, rows in found.skipped.items())
    print(f"{verb}: {changes}, {data_size(found.bytes)} of shards{skipped}")
    others = f", and {plural(found.others, 'row')} of other outputs" if found.others else ""
    print(f"{found.address}: {plural(found.rows, 'row')} of this output{others}")
    return 0


def _table(address: str) -> str:
    """A name for the table: that of the output's folder."""
    return re.sub(r"\W", "_", address.rstrip("/").rpartition("/")[2]) or "vectors"
