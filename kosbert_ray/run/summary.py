"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kosbert_ray.run.bounds import Bound
from kosbert_ray.shards.totals import Totals
from kosbert_ray.units import duration, plural
from kosbert_ray.vectors.kinds import DENSE, Kind

UNFINISHED = {"": "not complete", "limit": "trial", "max_minutes": "time is up"}


@dataclass(frozen=True)
class Summary:
    """The result of a run. It is a path, that of the output: ``Output.open(summary)`` opens what was written.

    Attributes:
        output: the output directory.
        totals: sums over all slices of the output.
        new: sums over the slices that this run committed.
        seconds: wall time of the pipeline.
        first_slice_seconds: seconds until the first commit; None if there was nothing to do.
        start_seconds: those of them before work on the first slice began: starting Ray and loading the model.
        removed: number of shards that left the output because their input changed or was removed.
        changed: those of them whose input changed.
        within_limit: whether ``max_rejected`` allows the rejected rows; if not, the output is not complete.
        chunked: whether long texts became one row per chunk.
        complete: whether the output has its ``_SUCCESS``.
        retired: whether these shards are kept, because the output is published as a table.
        kinds: the kinds of vectors in the output.
        unpublished: the errors of tables as which the output could not be published.
        bound: "limit" or "max_minutes" if that option ended the run with slices left to do, otherwise empty.
    """

    output: str
    totals: Totals
    new: Totals
    seconds: float
    first_slice_seconds: float | None
    start_seconds: float
    removed: int
    within_limit: bool
    chunked: bool = False
    complete: bool = False
    bound: Bound = ""
    changed: int = 0
    retired: bool = False
    unpublished: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = (DENSE,)

    def __fspath__(self) -> str:
        return self.output

    def __str__(self) -> str:
        lines = [self.result(), *([self.speed()] if self.new.slices else []), *filter(None, [self.totals.empty_vectors()])]
        return "\n".join([*lines, f"open it with kosbert_ray.Output.open({self.output!r})"])

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Shows the same at the end of a notebook's cell."""
        printer.text(str(self))

    def result(self) -> str:
        """Describes the output in one line."""
        totals = self.totals
        word = "done" if self.complete else UNFINISHED[self.bound]
        texts = f" ({plural(totals.input_rows - totals.rejected, 'text')})" if self.chunked else ""
        shown = f", {plural(totals.rejected, 'row')} rejected (kosbert-ray rejected shows them)" if totals.rejected else ""
        return f"{word}: {plural(totals.rows, 'row')}{texts} in {plural(totals.slices, 'shard')} in {self.output}{shown}"

    def deleted(self) -> str:
        """Describes in one line which shards were deleted or retired; empty if none were."""
        counts = ((self.changed, "changed"), (self.removed - self.changed, "removed"))
        parts = [f"{plural(count, 'shard')} of {kind} inputs" for count, kind in counts if count]
        if not parts:
            return ""
        kept = f"kept {' and '.join(parts)} for readers of tables; kosbert-ray publish removes and later deletes them"
        return kept if self.retired else f"deleted {' and '.join(parts)}"

    def speed(self) -> str:
        """Describes in one line how long the run took, and how fast it was after its start."""
        new, working = self.new, max(1e-9, self.seconds - self.start_seconds)
        long_texts = f", {new.long_texts()}" if new.long_texts() else ""
        reused = f", {new.reused:,} reused" if new.reused else ""
        return (
            f"{plural(new.rows, 'row')} in {duration(self.seconds)}, of which {duration(self.start_seconds)} to start: "
            f"{new.rows / working:,.0f} rows/s, {new.tokens / working:,.0f} tokens/s; first slice after "
            f"{self.first_slice_seconds or 0:.1f} s; {plural(new.distinct, 'distinct text')} encoded{reused}{long_texts}"
        )
