"""Helpers shared by the commands: options of a job file, and printing."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kosbert_ray.cli.option_help import OPTION_HELP
from kosbert_ray.errors import UsageError
from kosbert_ray.units import parse_bytes

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig

EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted"
CORE_NOISE = b"has constructor arguments in the object store and max_restarts > 0"
KILLED = "killed by `ray.kill`"
# What --set may set in a command that reads an output, and in one that also encodes texts with its model.
READS_OUTPUT = ("storage", "output.path")
ENCODES = ("storage", "encoder", "output.path", "model.mirror", "model.allow_remote_code")
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


class ProblemsOfRay(io.TextIOBase):
    """Takes what Ray prints to standard output, which is for results, to standard error.

    That a worker was killed is left out: Ray Data ends its workers so where a run ends early.
    """

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        """Passes whole lines on."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if KILLED not in line:
                print(line, file=sys.stderr)
        return len(text)


def add_config(
    parser: argparse.ArgumentParser, what: str = "a job file in YAML", uses: tuple[str, ...] | None = None
) -> None:
    """Gives a command ``--config`` and ``--set``.

    Args:
        parser: the command's parser.
        what: describes the file.
        uses: the sections and options that ``--set`` may set; None for all of them.
    """
    parser.set_defaults(uses=uses)
    parser.add_argument("--config", metavar="FILE", help=what)
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option, such as encoder.precision=bf16; can be repeated",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Gives a command OUTPUT; see :func:`output_config`."""
    parser.add_argument(
        "output", nargs="?", metavar="OUTPUT", help="an embedded folder or s3:// URL; by default that of the job file"
    )


def output_config(arguments: argparse.Namespace, **names: str) -> JobConfig:
    """The options of a command on an output, which the command line or the job file names.

    Args:
        arguments: of the command.
        names: the dotted name of each of its options beside OUTPUT.
    """
    config = job_config(arguments, {"output": "output.path", **names})
    if not config.output.path:
        raise UsageError("OUTPUT: missing; name an embedded folder, or a job file with output.path (--config)")
    return config


def describe_options(parser: argparse.ArgumentParser) -> None:
    """Replaces ``{section.key}`` in help texts by that option's description and name."""
    for action in parser._actions:
        if OPTION_MARK.fullmatch(action.help or ""):
            name = str(action.help).strip("{}")
            action.help = f"{OPTION_HELP[name]} ({name})".replace("%", "%%")


def job_config(arguments: argparse.Namespace, names: dict[str, str], expand: bool = True) -> JobConfig:
    """The job that the command line says.

    Args:
        arguments: of the command.
        names: the dotted name of each of its own options.
        expand: whether to replace variables in the job file; false for a job that runs elsewhere.
    """
    from kosbert_ray.config import load_config

    require_used(arguments)
    return load_config(arguments.config, arguments.set, given(arguments, names), expand=expand)


def require_used(arguments: argparse.Namespace) -> None:
    """Raises UsageError if ``--set`` names an option that the command has no use for. A job file may hold any."""
    uses: tuple[str, ...] | None = getattr(arguments, "uses", None)
    if uses is None:
        return
    for setting in arguments.set:
        name = setting.partition("=")[0].strip()
        if not any(name == used or name.startswith(f"{used}.") or used.startswith(f"{name}.") for used in uses):
            raise UsageError(f"--set {name}: not used by this command, which takes options of {', '.join(uses)}")


def given(arguments: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    """The options of the command line that were given, by dotted name."""
    return {name: value for option, name in names.items() if (value := getattr(arguments, option)) is not None}


def print_table(rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Prints rows of cells in aligned columns; see :func:`table_lines`."""
    for line in table_lines(rows, width):
        print(line)


def table_lines(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Aligns rows of cells, a header first: columns of numbers to the right, others to the left.

    Args:
        rows: the cells. Korean letters take two places of a terminal.
        width: where lines are cut; None for nowhere.
    """
    from rich.cells import cell_len, set_cell_size

    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    numeric = [all(NUMBER.fullmatch(cell) for cell in column[1:] if cell) for column in columns]
    lines = []
    for row in rows:
        cells = [
            " " * (most - cell_len(cell)) + cell if right else cell + " " * (most - cell_len(cell))
            for cell, most, right in zip(row, widths, numeric, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line if width is None or cell_len(line) <= width else set_cell_size(line, width - 1) + "…")
    return lines


def terminal_width() -> int | None:
    """Width of the terminal that standard output is; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def one_line(text: str) -> str:
    """A text on one line, with visible line ends and tabs."""
    return text.replace("\r\n", "\n").translate({10: "⏎", 13: "⏎", 9: "→"})


def add_json(parser: argparse.ArgumentParser) -> None:
    """Gives a command ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def print_json(found: Any) -> None:
    """Prints a dataclass as one line of JSON."""
    print(json.dumps(asdict(found), ensure_ascii=False, default=str))


def add_output_file(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Gives a command ``-o FILE``; ``--to`` is its name in version 0.1.0."""
    parser.add_argument("-o", "--output-file", "--to", metavar="FILE", dest="to", **options)


def size_of(option: str, value: str | None) -> int | None:
    """Bytes of an option's value, such as 256MB; None if it is not given. Raises UsageError."""
    try:
        size: int | None = parse_bytes(value)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    return size


def write_file(path: str, content: bytes) -> None:
    """Writes a command's result to a file; raises UsageError. An older file stays if this fails."""
    target = Path(os.path.realpath(path))
    partial = target if target.exists() and not target.is_file() else target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        if partial != target:
            partial.replace(target)
    except OSError as error:
        if partial != target:
            partial.unlink(missing_ok=True)
        raise UsageError(f"-o {path}: {error.strerror or error}") from error
