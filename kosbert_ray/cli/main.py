"""The ``kosbert-ray`` command: parses arguments, runs a command, and turns errors into one line and an exit code.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 more rows rejected than ``max_rejected`` allows, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import io
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from kosbert_ray._version import __version__
from kosbert_ray.cli import (
    cluster,
    completion,
    demo,
    diff,
    doctor,
    embed,
    evaluate,
    export,
    index,
    init,
    load,
    ls,
    plan,
    promote,
    publish,
    rejected,
    report,
    schema,
    search,
    status,
    submit,
    train,
    verify,
)
from kosbert_ray.cli.common import EXIT_INTERRUPTED, INTERRUPTED, describe_options
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import KosbertError, UsageError, described
from kosbert_ray.logs import shown

log = logging.getLogger(__name__)

_interrupted = INTERRUPTED  # the last line of the command that runs, if it is interrupted

COMMANDS = {
    "run a job": (demo, embed, plan, submit, status, init, schema, doctor),
    "use an output": (search, index, cluster, report, export, load, publish, ls),
    "check and replace an output": (verify, rejected, diff, promote),
    "models": (evaluate, train),
}
LOUDNESS = (
    (("-q", "--quiet"), logging.WARNING, "show warnings and errors only"),
    (("-v", "--verbose"), logging.DEBUG, "show details, such as each committed slice"),
)
EXAMPLES = (
    ("try it on bundled data", "kosbert-ray demo"),
    ("estimate a job", "kosbert-ray plan s3://bucket/corpus/"),
    (
        "embed a corpus; after a crash, run the same command again",
        "kosbert-ray embed s3://bucket/corpus/ s3://bucket/vectors/ --keep id",
    ),
    ("search it", "kosbert-ray search s3://bucket/vectors/ '비 오는 날'"),
    ("write a job file to start from", "kosbert-ray init job.yaml"),
)
GRACE_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = whole_parser().parse_args(argv)
    if getattr(arguments, "no_color", False):
        os.environ["NO_COLOR"] = "1"
    with shown(getattr(arguments, "log_format", None) or "text", getattr(arguments, "level", logging.INFO)):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    global _interrupted
    _interrupted = getattr(arguments, "interrupted", INTERRUPTED)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    _use_token()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal in EUC-KR cannot print emoji
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except KosbertError as error:
        for line in error.args if isinstance(error, UsageError) else [error]:
            log.error(line)
        return error.exit_code
    except KeyboardInterrupt:
        log.info(_interrupted)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG):
            log.error(f"standard output cannot be written ({error.strerror}); the result is incomplete")
            return 1
        return _unexpected(error, arguments.debug)
    except Exception as error:
        return _unexpected(error, arguments.debug)


def _unexpected(error: Exception, debug: bool) -> int:
    """Reports an unexpected error in one line; its traceback goes to a file, or to the log if there is no terminal."""
    lines = traceback.format_exc()
    if debug or not sys.stderr.isatty():
        for line in lines.rstrip().splitlines():
            log.info(line)
        where = "the lines above"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="kosbert-ray-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write(lines)
        where = file.name
    log.error(
        f"{described(error)}; this is a bug in kosbert-ray, please report it with {where}. Committed slices "
        "stay; run the same command again"
    )
    return 1


def _use_token() -> None:
    """Makes Ray's client send the authentication token that is configured on this machine."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.join(os.path.expanduser("~"), ".ray", "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or os.path.isfile(path)):
        os.environ["RAY_AUTH_MODE"] = "token"


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    """Ends the run cleanly, or immediately if that takes too long or the user interrupts again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _abandon())
    timer = threading.Timer(GRACE_SECONDS, _abandon)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _abandon() -> NoReturn:
    log.info(_interrupted)
    os._exit(EXIT_INTERRUPTED)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the installed command: runs :func:`main` and exits immediately.

    The interpreter can abort or hang in teardown while threads of Arrow or Ray hold Python objects. Everything is written
    by now, so teardown is skipped.
    """
    _open_closed_streams()
    code = main(argv)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """Opens the null device for closed standard streams (``2>&-``), so that no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null


class _Parser(argparse.ArgumentParser):
    """Suggests names for those that are unknown, and prints the job file's descriptions of options."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that is unique today may be ambiguous in the next version.
        super().__init__(**options | {"allow_abbrev": False})

    def format_help(self) -> str:
        """Formats the help text."""
        describe_options(self)
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments; what a command does not know is its error, not that of the parser above it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(self._unknown(unknown))
        return found, unknown

    def _unknown(self, arguments: Sequence[str]) -> str:
        message = f"unrecognized arguments: {' '.join(arguments)}"
        if all(os.path.exists(name) for name in arguments):
            return f"{message} (INPUT is one path; if the shell expanded a pattern, quote it: 'in/*.jsonl')"
        flag = next((name.partition("=")[0] for name in arguments if name.startswith("-")), "")
        return f"{message}{_suggestion(flag, self._option_string_actions)}"

    def error(self, message: str) -> NoReturn:
        """Ends the command with a message about its arguments."""
        wrong = re.match(r"argument (?:COMMAND|==SUPPRESS==): invalid choice: '(.*?)'", message)
        if wrong:
            commands = [name for action in self._actions for name in action.choices or ()]
            message = f"there is no command {wrong[1]!r}{_suggestion(wrong[1], commands)}"
        self.exit(UsageError.exit_code, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def whole_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog="kosbert-ray",
        usage="kosbert-ray COMMAND [OPTIONS]",
        description="Turns a large text corpus into embeddings, on a laptop or a Ray cluster. "
        "kosbert-ray COMMAND --help describes a command.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"kosbert-ray {__version__}")
    # The groups below list the commands; argparse would list them all as one.
    commands = parser.add_subparsers(prog="kosbert-ray", metavar="COMMAND", help=argparse.SUPPRESS)
    for title, members in COMMANDS.items():
        listed = len(commands._choices_actions)
        for command in members:
            command.add(commands)
        parser.add_argument_group(title)._group_actions += commands._choices_actions[listed:]
    completion.add(commands, whole_parser)
    parser.set_defaults(run=lambda _: _print_help(parser), debug=False)
    add_examples(parser, EXAMPLES)
    for command_parser in commands.choices.values():
        command_parser.add_argument("--debug", action="store_true", help="print the traceback of an unexpected error")
        command_parser.add_argument("--no-color", action="store_true", help="no colors (also: the variable NO_COLOR)")
        loudness = command_parser.add_mutually_exclusive_group()
        for flags, level, shows in LOUDNESS:
            loudness.add_argument(*flags, dest="level", action="store_const", const=level, default=logging.INFO, help=shows)
    return parser


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0
