"""``kosbert-ray doctor``: whether a job could run from here."""

from __future__ import annotations

import argparse

from kosbert_ray.cli import embed, submit
from kosbert_ray.cli.common import Commands, add_json, print_json
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import UsageError

EXAMPLES = (
    ("check everything before a job", "kosbert-ray doctor s3://bucket/corpus/ s3://bucket/vectors/"),
    (
        "compare a model with sentence-transformers on 100 own texts",
        "kosbert-ray doctor corpus/ --model NAME --compare 100",
    ),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="check everything a job needs: versions, devices, the model, the stores, Ray",
        description="Checks everything that the job needs. Exits with 1 if a check fails.",
    )
    embed.add_options(parser)
    parser.add_argument(
        "--address", metavar="URL", help="look at a cluster and a node of each kind, by its job API: http://HEAD:8265"
    )
    parser.add_argument(
        "--compare",
        type=int,
        default=0,
        metavar="N",
        help="embed N texts of the input with sentence-transformers, too, and show the least cosine of each kind",
    )
    add_json(parser)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.compare < 0:
        raise UsageError(f"--compare: {arguments.compare} is no number of texts")
    config = embed.config_of(arguments, expand=not arguments.address)
    if arguments.address:
        compare = ("--compare", str(arguments.compare)) if arguments.compare else ()
        options = (*compare, *(("--json",) if arguments.json else ()))
        return submit.follow(arguments.address, config, ("doctor", *options))
    from kosbert_ray.planning.doctor import examine

    ok = True
    for finding in examine(config, arguments.compare):
        ok &= finding.ok
        if arguments.json:
            print_json(finding)
            continue
        print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:9} {finding.message}", flush=True)
    return 0 if ok else 1
