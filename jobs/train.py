"""What a cluster runs: ``python jobs/train.py --config FILE [--set KEY=VALUE]``; the same as ``kosbert-ray train``."""

import sys

from kosbert_ray.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
