"""What a cluster runs: ``python jobs/evaluate.py MODEL DATA``; the same as ``kosbert-ray evaluate``."""

import sys

from kosbert_ray.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
