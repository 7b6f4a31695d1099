"""``kosbert-ray cluster``: groups similar rows and shows typical words and texts of each group."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import (
    READS_OUTPUT,
    Commands,
    add_config,
    add_json,
    add_output,
    one_line,
    output_config,
    print_json,
    print_table,
    terminal_width,
)
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import plural

SHOWN = 20
SHOWN_TERMS = 4

EXAMPLES = (
    ("find a hundred topics", "kosbert-ray cluster vectors/ -n 100"),
    ("find near-duplicates", "kosbert-ray cluster vectors/ --threshold 0.95"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "cluster",
        help="group similar rows of an output, and show what each group is about",
        description="Spherical k-means over OUTPUT, or groups of near-duplicates with --threshold. Writes a label and a "
        "distance for each row to OUTPUT/_clusters, and a table of the clusters.",
    )
    add_output(parser)
    parser.add_argument(
        "-n", "--clusters", type=int, metavar="N", help="number of clusters (default: the square root of half the rows)"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="instead of k-means, group rows that cosines of at least X connect"
    )
    parser.add_argument("--text", metavar="COLUMN", help="the kept column to take words from (default: the job's text)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of k-means (default: 0)")
    add_json(parser)
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.clusters import cluster
    from kosbert_ray.outputs.output import Output

    found = cluster(Output(config), arguments.clusters, arguments.threshold, arguments.text, arguments.seed)
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (str(one.number), f"{one.rows:,}", ", ".join(one.terms[:SHOWN_TERMS]), one_line(one.texts[0]) if one.texts else "")
        for one in found.clusters[:SHOWN]
    ]
    if any(one.texts for one in found.clusters):
        print_table([("cluster", "rows", "words", "nearest to its centre"), *rows], terminal_width())
    else:
        print_table([("cluster", "rows"), *(row[:2] for row in rows)], terminal_width())
    if len(found.clusters) > SHOWN:
        print(f"… and {plural(len(found.clusters) - SHOWN, 'smaller cluster')}")
    print(
        f"done: {plural(found.rows, 'row')} in {plural(len(found.clusters), 'cluster')}, in "
        f"{found.seconds:.1f} s; see {found.folder}"
    )
    return 0
