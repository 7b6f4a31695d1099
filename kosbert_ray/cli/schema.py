"""``kosbert-ray schema``: the JSON schema of job files, with which editors check and complete them."""

from __future__ import annotations

import argparse
import json

from kosbert_ray.cli.common import Commands, add_output_file, write_file
from kosbert_ray.cli.examples import add_examples

EXAMPLES = (("for the editor of job.yaml", "kosbert-ray schema -o kosbert-ray.schema.json"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON schema of job files, for editors",
        description="Prints the JSON schema of job files. Editors with YAML support check and complete a job file whose "
        "first line names it, as that of init does.",
    )
    add_output_file(parser, help="write to this file")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kosbert_ray.config import job_schema

    text = json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments.to:
        write_file(arguments.to, text.encode())
    else:
        print(text, end="")
    return 0
