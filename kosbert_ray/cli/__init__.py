"""The ``kosbert-ray`` command: a module a command, which parses its arguments and prints what came of it."""

from kosbert_ray.cli.main import main, run

__all__ = ["main", "run"]
