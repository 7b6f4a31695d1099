"""``kosbert-ray ls``: lists the shards of an output, or the changes since a run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, add_output, output_config, print_table
from kosbert_ray.cli.examples import add_examples

EXAMPLES = (("list shards added since a run", "kosbert-ray ls vectors/ --since 20261125T120000-0a1b2c3d"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ls",
        help="list the shards of an output, or the changes since a run",
        description="Lists the shards of the complete OUTPUT; with --since, only the shards added after that run, which a "
        "reader has yet to load.",
    )
    add_output(parser)
    parser.add_argument(
        "--since", metavar="RUN", help="only shards added after that run; --format jsonl or table also shows those removed"
    )
    parser.add_argument("--runs", action="store_true", help="list the runs instead")
    parser.add_argument("--format", choices=("names", "table", "jsonl"), default="names", help="default: names")
    parser.add_argument("--json", action="store_const", const="jsonl", dest="format", help="the same as --format jsonl")
    add_config(parser, uses=READS_OUTPUT)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.history import runs, since
    from kosbert_ray.outputs.output import Output

    output = Output(config)
    if arguments.runs:
        rows = [
            (run, f"{len(receipts):,}", f"{sum(receipt.rows for receipt in receipts):,}") for run, receipts in runs(output)
        ]
        print_table([("run", "shards", "rows"), *rows])
        return 0
    change = since(output, arguments.since)
    if arguments.format == "jsonl":
        for receipt in change.added:
            print(json.dumps({"change": "added", **asdict(receipt)}, ensure_ascii=False))
        for name in change.removed:
            print(json.dumps({"change": "removed", "shard": name}, ensure_ascii=False))
    elif arguments.format == "table":
        added = [(receipt.shard, receipt.file, f"{receipt.rows:,}", "added") for receipt in change.added]
        removed = [(name, "", "", "removed") for name in change.removed]
        print_table([("shard", "file", "rows", "change"), *added, *removed])
    else:
        for receipt in change.added:
            print(receipt.shard)
    return 0
