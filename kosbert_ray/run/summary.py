"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass

from kosbert_ray.shards.totals import Totals


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        output: the output directory.
        totals: sums over all slices of the output.
        new: sums over the slices that this run committed.
        seconds: wall time of the pipeline.
        first_slice_seconds: seconds until the first commit; None if there was nothing to do.
        removed: number of shards deleted because their input changed or was removed.
        within_limit: whether ``max_rejected`` allows the rejected rows; if not, the output is not complete.
        chunked: whether long texts became one row per chunk.
        complete: whether the output has its ``_SUCCESS``.
    """

    output: str
    totals: Totals
    new: Totals
    seconds: float
    first_slice_seconds: float | None
    removed: int
    within_limit: bool
    chunked: bool = False
    complete: bool = False
