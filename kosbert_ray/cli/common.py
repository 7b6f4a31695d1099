"""Helpers shared by the commands: options of a job file, and printing."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kosbert_ray.cli.option_help import OPTION_HELP

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig

EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted"
CORE_NOISE = b"has constructor arguments in the object store and max_restarts > 0"
NOISE_SECONDS = 0.5
OPTION_MARK = re.compile(r"\{[a-z_.]+\}")  # help text of an argument that sets an option
NUMBER = re.compile(r"-?[\d,]+(\.\d+)?")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@contextlib.contextmanager
def without_core_noise() -> Iterator[None]:
    """Drops the one harmless line that Ray's C++ core prints past Python for every actor pool (ray#53727).

    For a command, whose process is its own: file descriptor 2 goes through a pipe until the block ends, and what Python
    writes to standard error goes past it. Where standard error is not descriptor 2, nothing is changed.
    """
    try:
        direct = sys.stderr.fileno() != 2
    except (AttributeError, OSError, ValueError):
        direct = True
    if direct:
        yield
        return
    before, original = sys.stderr, os.dup(2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if CORE_NOISE not in line:
                    with contextlib.suppress(OSError):  # nobody reads it any more; the pipe is still to be emptied
                        os.write(original, line)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(original, 2)  # the pipe's last writer in this process; workers that are still ending may hold others
        thread.join(NOISE_SECONDS)
        own, sys.stderr = sys.stderr, before
        with contextlib.suppress(OSError, ValueError):
            own.close()


def add_config(parser: argparse.ArgumentParser, what: str = "a job file in YAML") -> None:
    """Gives a command ``--config`` and ``--set``."""
    parser.add_argument("--config", metavar="FILE", help=what)
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option, such as encoder.precision=bf16; can be repeated",
    )


def describe_options(parser: argparse.ArgumentParser) -> None:
    """Replaces ``{section.key}`` in help texts by that option's description and name."""
    for action in parser._actions:
        if OPTION_MARK.fullmatch(action.help or ""):
            name = str(action.help).strip("{}")
            action.help = f"{OPTION_HELP[name]} ({name})".replace("%", "%%")


def job_config(arguments: argparse.Namespace, names: dict[str, str]) -> JobConfig:
    """The job that the command line says; ``names`` gives the dotted name of each of its own options."""
    from kosbert_ray.config import load_config

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
