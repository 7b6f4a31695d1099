"""Figures to compare a report with: those of ``bundled:everyday`` by ``bundled:kosbert-mini``."""

from __future__ import annotations

NAME = "everyday sentences by kosbert-mini"
ANISOTROPY = 0.158
EFFECTIVE_DIMENSIONS, DIMENSION = 70.3, 256
LENGTHS = (13.0, 16.0)  # tokens: the median, and the 95th percentile
NORMS = (7.55, 8.69)  # lengths of the vectors: the same
COSINES = (0.153, 0.353)  # of random pairs: the same
SPREAD = 3.27  # the largest standard deviation of a dimension over the median
