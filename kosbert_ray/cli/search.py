"""``kosbert-ray search``: the rows of an output nearest to a text."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import Commands, add_config, job_config, say


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "search",
        help="show the rows of an output nearest to a query",
        description="Encodes QUERY with the output's own model and shows the rows nearest by cosine.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="an embedded folder or s3:// URL")
    parser.add_argument("query", metavar="QUERY", help="any text")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many rows (default: 5)")
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {"output": "output.path"})
    from kosbert_ray.job.search import search

    found = search(config, arguments.query, arguments.top, say)
    for hit in found:
        kept = "  ".join(str(value) for value in hit.row.values())
        print(f"{hit.score:7.4f}  {kept or hit.shard}")
    return 0
