"""Kinds of problems that ``verify`` finds, and a remedy for each."""

from __future__ import annotations

from dataclasses import dataclass

REMEDIES = {
    "incomplete": "run the same embed command (without --limit) again to complete it",
    "broken": "delete the broken files and run the same embed command again",
    "stale": "run the same embed command again, which replaces shards of changed files",
    "foreign": "move files that are not this job's out of the folder, unless a Delta table there names them",
    "unreadable": "fix or remove the input files that cannot be read, and run the same embed command again",
    "input": "check that --input is what this output was made of",
}


@dataclass(frozen=True)
class Problem:
    """A problem with an output.

    Attributes:
        kind: one of ``REMEDIES``.
        text: a line that names the file and the problem.
    """

    kind: str
    text: str
