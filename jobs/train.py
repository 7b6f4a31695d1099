"""Entry point for clusters: ``python jobs/train.py --config FILE [--set KEY=VALUE]``, same as ``kosbert-ray train``."""

import sys

from kosbert_ray.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
