"""What the commands share: the options of a job file, and a word to the user."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from kosbert_ray.job.config import JobConfig

NUMBER = re.compile(r"-?[\d,]+(\.\d+)?")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def say(line: str) -> None:
    """A line for the user, on standard error: results go to standard output."""
    print(f"kosbert-ray: {line}", file=sys.stderr, flush=True)


def add_config(parser: argparse.ArgumentParser, what: str = "a job file in YAML") -> None:
    """Gives a command ``--config`` and ``--set``."""
    parser.add_argument("--config", metavar="FILE", help=what)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="encoder.precision=bf16, …")


def job_config(arguments: argparse.Namespace, names: dict[str, str]) -> JobConfig:
    """The job that the command line says; ``names`` gives the dotted name of each of its own options."""
    from kosbert_ray.job.config import load_config

    return load_config(arguments.config, arguments.set, given(arguments, names))


def given(arguments: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    """The options of the command line that were given, by dotted name."""
    return {name: value for option, name in names.items() if (value := getattr(arguments, option)) is not None}


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells in aligned columns, a header first: columns of numbers to the right, others to the left."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(NUMBER.fullmatch(cell) for cell in column[1:] if cell) for column in columns]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())
