"""``kosbert-ray rejected``: shows the rows that could not be embedded."""

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
from kosbert_ray.errors import UsageError
from kosbert_ray.units import plural

SHOWN = 20

EXAMPLES = (
    ("show the first rejected rows and what helps", "kosbert-ray rejected vectors/"),
    ("list all of them for a program", "kosbert-ray rejected vectors/ --limit 1000000 --json"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "rejected",
        help="show the rows that could not be embedded, and why",
        description="Shows rejected rows of OUTPUT: file, line, reason and text, and what helps. Lines are counted in the "
        "input if it is still there as it was embedded.",
    )
    add_output(parser)
    parser.add_argument("--limit", type=int, default=SHOWN, metavar="N", help=f"rows to show (default: {SHOWN})")
    add_json(parser)
    add_config(parser, uses=(*READS_OUTPUT, "input.path"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.limit < 1:
        raise UsageError("--limit: ask for at least one row")
    config = output_config(arguments)
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.rejected import rejected

    found = rejected(Output(config), arguments.limit)
    if arguments.json:
        print_json(found)
        return 0
    if found.shown:
        rows = [
            (row.file, _place(row.line, row.row, row.byte_offset), row.reason, one_line(row.text or ""))
            for row in found.shown
        ]
        print_table([("file", "line", "reason", "text"), *rows], terminal_width())
    first = f"the first {len(found.shown):,} of " if len(found.shown) < found.rows else ""
    print(f"rejected: {first}{plural(found.rows, 'row')} of {found.output}")
    for reason, hint in found.hints.items():
        print(f"{reason}: {hint}")
    return 0


def _place(line: int | None, row: int | None, byte_offset: int | None) -> str:
    if line is not None:
        return f"{line:,}"
    return f"row {row:,}" if row is not None else f"byte {byte_offset:,}"
