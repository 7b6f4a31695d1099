"""The ``kosbert-ray`` command: parses arguments, runs a command, and turns errors into one line and an exit code.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 more rows rejected than ``max_rejected`` allows, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from kosbert_ray._version import __version__
from kosbert_ray.cli import (
    cluster,
    completion,
    diff,
    doctor,
    embed,
    evaluate,
    export,
    init,
    ls,
    plan,
    promote,
    report,
    search,
    status,
    submit,
    train,
    verify,
)
from kosbert_ray.cli.common import EXIT_INTERRUPTED, INTERRUPTED, describe_options
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import KosbertError, described
from kosbert_ray.logs import shown

log = logging.getLogger(__name__)

_interrupted = INTERRUPTED  # the last line of the command that runs, if it is interrupted

COMMANDS = (
    *(embed, plan, submit, status, report, ls, search, cluster, verify, diff, promote, export),
    *(evaluate, train, init, doctor),
)
EXAMPLES = (
    ("try it on bundled data", "kosbert-ray embed bundled:everyday demo --model bundled:kosbert-mini --keep id,text"),
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
    with shown(getattr(arguments, "log_format", None) or "text"):
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
        log.error(error)
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
    """Explains surplus arguments, and prints the job file's descriptions of options."""

    def format_help(self) -> str:
        """Formats the help text."""
        describe_options(self)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Ends the command with a message about its arguments."""
        _, found, names = message.partition("unrecognized arguments: ")
        if found and all(os.path.exists(name) for name in names.split()):
            message += " (INPUT is one path; if the shell expanded a pattern, quote it: 'in/*.jsonl')"
        super().error(message)


def whole_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog="kosbert-ray", description="Turns a large text corpus into embeddings, on a laptop or a Ray cluster."
    )
    parser.add_argument("--version", action="version", version=f"kosbert-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    completion.add(commands, whole_parser)
    add_examples(parser, EXAMPLES)
    for command_parser in commands.choices.values():
        command_parser.add_argument("--debug", action="store_true", help="print the traceback of an unexpected error")
    return parser
