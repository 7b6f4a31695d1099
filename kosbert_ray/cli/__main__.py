"""``python -m kosbert_ray.cli``."""

from kosbert_ray.cli import run

run()
