"""Entry point for clusters: ``python jobs/embed.py --config FILE [--set KEY=VALUE]``, same as ``kosbert-ray embed``."""

import sys

from kosbert_ray.cli import run

if __name__ == "__main__":
    run(["embed", *sys.argv[1:]])
