"""``kosbert-ray completion``: what a shell needs to complete our commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from kosbert_ray.cli.common import Commands, describe_options
from kosbert_ray.cli.examples import add_examples

SHELLS = ("bash", "zsh", "tcsh")

EXAMPLES = (("enable completion in this bash session", 'eval "$(kosbert-ray completion bash)"'),)


def add(commands: Commands, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the command; ``whole`` makes the parser of all of them."""
    parser = commands.add_parser(
        "completion",
        help="print what a shell needs to complete commands, options and files",
        description='Prints a script. Put eval "$(kosbert-ray completion bash)" into ~/.bashrc; for zsh, write it '
        "to a file _kosbert-ray in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=lambda arguments: _run(arguments, whole()))


def _run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    import shtab

    _complete_files(parser)
    print(shtab.complete(parser, arguments.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Completes arguments that may be a file or a folder as one."""
    import shtab

    describe_options(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # shtab leaves out what --help does not show
            for command in action.choices.values():
                _complete_files(command)
        elif action.metavar in ("FILE", "FOLDER", "FOLDER/NAME", "INPUT", "OUTPUT", "MODEL", "DATA", "A", "B"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
