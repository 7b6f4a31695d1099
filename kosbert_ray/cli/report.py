"""``kosbert-ray report``: writes one HTML file that shows an output."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import ENCODES, Commands, add_config, add_output, add_output_file, output_config, write_file
from kosbert_ray.cli.examples import add_examples

SAMPLE = 2000
LANGUAGES = ("en", "ko")

EXAMPLES = (
    ("write one HTML file", "kosbert-ray report vectors/ -o report.html"),
    ("write it in Korean", "kosbert-ray report vectors/ --lang ko"),
    ("colour the map by a column", "kosbert-ray report vectors/ --color category --sample 5000"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "report",
        help="write one HTML file that shows an output",
        description="Throughput, stages, lengths, rejected rows, the vectors' health and a map of OUTPUT, in one file that "
        "opens anywhere. With prices in the job file (plan), the cost.",
    )
    add_output(parser)
    add_output_file(parser, default="report.html", help="default: report.html")
    parser.add_argument("--sample", type=int, metavar="N", default=SAMPLE, help=f"rows on the map (default: {SAMPLE})")
    parser.add_argument("--color", metavar="COLUMN", help="colour the map by a kept column (default: by cluster)")
    parser.add_argument("--text", metavar="COLUMN", help="the kept column to show (default: the job's text)")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page (default: en)")
    parser.add_argument("--evaluation", metavar="FILE", help="figures from kosbert-ray evaluate --json")
    add_config(parser, uses=(*ENCODES, "plan"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.report.data import report
    from kosbert_ray.outputs.report.page import page

    output = Output(config)
    found = report(output, config.plan, arguments.sample, arguments.color, arguments.text, arguments.evaluation)
    write_file(arguments.to, page(found, arguments.lang).encode())
    print(f"written: {arguments.to}")
    return 0
