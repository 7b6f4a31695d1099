"""Live view of a run: what workers are doing, throughput, progress and metrics."""
