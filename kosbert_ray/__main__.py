"""``python -m kosbert_ray``: the ``kosbert-ray`` command."""

from kosbert_ray.cli import run

run()
