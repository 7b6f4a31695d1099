"""Entry point for clusters: ``python jobs/evaluate.py MODEL DATA``, same as ``kosbert-ray evaluate``."""

import sys

from kosbert_ray.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
