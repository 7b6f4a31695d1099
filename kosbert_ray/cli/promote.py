"""``kosbert-ray promote``: makes an output the current one of its folder."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, job_config
from kosbert_ray.cli.examples import add_examples

EXAMPLES = (("make an output the current one", "kosbert-ray promote versions/v2"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "promote",
        help="make an output the current one of its folder",
        description="Writes _CURRENT into the folder of the complete OUTPUT, atomically. Every command that is given the "
        "folder then reads the output that _CURRENT names. To go back, promote the earlier output again.",
    )
    parser.add_argument("output", metavar="FOLDER/NAME", help="an embedded folder or s3:// URL")
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {"output": "output.path"})
    from kosbert_ray.outputs.versions import promote, split

    folder, before = promote(config)
    name = split(config.output.path)[1]
    print(f"promoted: {folder} is now {name}" + (f" (was {before})" if before not in (None, name) else ""))
    return 0
