"""Examples at the end of ``--help``. Each command module has its own ``EXAMPLES``: pairs of a description and a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

Examples = Sequence[tuple[str, str]]


class Formatter(argparse.HelpFormatter):
    """Wraps prose and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def add_examples(parser: argparse.ArgumentParser, examples: Examples) -> None:
    """Ends a command's help with examples."""
    parser.formatter_class = Formatter
    lines = [f"  {description}:\n    {command}" for description, command in examples]
    parser.epilog = "\n".join(["examples:", *lines]).replace("%", "%%")
    parser.set_defaults(examples=tuple(examples))
