"""The ``kosbert-ray`` command: one module per command, which parses arguments and prints results."""

from kosbert_ray.cli.main import main, run

__all__ = ["main", "run"]
