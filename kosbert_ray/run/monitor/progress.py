"""Shows progress: a live view on a terminal or in a notebook, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kosbert_ray.corpus.fragments import slice_name
from kosbert_ray.logs import is_quiet
from kosbert_ray.run.monitor.throughput import Occupancy, Recent, bottleneck
from kosbert_ray.shards.lease import LiveReport
from kosbert_ray.shards.receipt import STAGES, Receipt
from kosbert_ray.shards.totals import Totals
from kosbert_ray.units import duration, plural

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kosbert_ray.run.monitor.board import Part, View

LOG_SECONDS = 10.0
LOOK_SECONDS = 1.0
BAR_WIDTH = 24
REFRESH_PER_SECOND = 4
REMEMBERED = 64  # slices committed last, of which a snapshot may be older than the commit


class _Console(Console):
    """A console that stays silent after a broken pipe; rich's console would end the process."""

    def on_broken_pipe(self) -> None:
        """Stops printing."""
        self.quiet = True


def _console() -> Console:
    """Standard error, or the output of a notebook cell."""
    console = _Console()
    return console if console.is_jupyter else _Console(file=sys.stderr)


@dataclass
class Progress:
    """Counts receipts and shows progress.

    Args:
        total_bytes: bytes of the whole corpus, the measure of progress and of the time left.
        done: sums over the slices committed by earlier runs.
        logged: whether lines go to the log, with their figures, instead of the console.
        limit: rows at which the run ends; None if all of the corpus is done.
    """

    total_bytes: int
    done: Totals
    console: Console = field(default_factory=_console)
    clock: Callable[[], float] = time.monotonic
    logged: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        self.new = Totals()
        self.recent = Recent(self.clock)
        self.first_at: float | None = None  # seconds until the first slice was committed
        self.start_seconds = 0.0  # until work on it began
        self._started = self._logged = self.clock()
        self._live: Live | None = None
        self._look: Callable[[], View | None] = lambda: None
        self._view: View | None = None
        self._open_parts: dict[str, Part] = {}  # what is encoded of slices that are not committed, by their names
        self._committed: deque[str] = deque(maxlen=REMEMBERED)
        self._occupancy = Occupancy()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._watching: threading.Thread | None = None

    def watch(self, look: Callable[[], View | None]) -> None:
        """Also shows the workers.

        Args:
            look: takes a snapshot of them.
        """
        self._look = look

    def __enter__(self) -> Progress:
        # A live view in a notebook needs ipywidgets.
        self.console.quiet = is_quiet()
        can_change = find_spec("ipywidgets") if self.console.is_jupyter else self.console.is_terminal
        if not self.logged and can_change and not self.console.quiet:
            self._live = Live(get_renderable=self.panel, console=self.console, refresh_per_second=REFRESH_PER_SECOND)
            self._live.start()
        self._ended.clear()
        self._watching = threading.Thread(target=self._watch, daemon=True, name="progress")
        self._watching.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._watching:
            self._watching.join(2 * LOOK_SECONDS)
        self._look, self._view = (lambda: None), None
        if self._live:
            self._live.refresh()
            self._live.stop()
            if self.console.is_jupyter and self.new.slices:  # a saved notebook has no widgets
                self.console.print(self.sentence(), highlight=False)
        elif self.new.slices:
            self._print()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Takes a snapshot of the workers, and prints a line if it is time; called once a second."""
        try:
            view = self._look()
        except Exception:  # workers that are about to end; the run itself reports what matters
            view = None
        with self._lock:
            self._view = view
            if view:
                self._occupancy.add(view)
                self._keep_parts(view)
            self._print_if_due()

    def _keep_parts(self, view: View) -> None:
        """Keeps the encoded parts of slices until their commits: writing token vectors takes long, too.

        The part of a slice whose encoder was killed is kept as well, so that progress does not go backwards.
        """
        for item in view.doing:
            there = self._open_parts.get(item.what)
            done = any(item.what.endswith(name) for name in self._committed)
            if item.part and not done and (there is None or there.share <= item.part.share):
                self._open_parts[item.what] = item.part

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self._started

    def add(self, receipt: Receipt) -> None:
        """Records a committed slice."""
        with self._lock:
            self.new.add(receipt)
            self.recent.add(receipt)
            name = "/" + slice_name(receipt.file, receipt.fragment_index, receipt.slice_index)
            self._committed.append(name)
            self._open_parts = {what: part for what, part in self._open_parts.items() if not what.endswith(name)}
            if self.first_at is None:
                self.first_at = self.seconds
                worked = sum(getattr(receipt, f"{stage}_seconds") for stage in STAGES)
                self.start_seconds = max(0.0, self.first_at - worked)
            self._print_if_due()

    def _print_if_due(self) -> None:
        if self._live is None and self.clock() - self._logged >= LOG_SECONDS:
            self._print()

    def _print(self) -> None:
        self._logged = self.clock()
        line = " · ".join([*self._parts(), *self._bottleneck(), *self._in_progress()])
        if self.logged:
            figures = {"share": self.share, "new": asdict(self.new), "seconds": self.seconds}
            log.info(line, extra={"event": "progress", **figures})
            return
        self.console.print(line, highlight=False, soft_wrap=True)

    @property
    def totals(self) -> Totals:
        """Sums over earlier runs and this one."""
        return self.done + self.new

    @property
    def share(self) -> float:
        """Share of the input's bytes that is committed."""
        return min(1.0, self.totals.input_bytes / self.total_bytes) if self.total_bytes else 1.0

    def _open(self, name: str) -> float:
        """The sum of a field over the encoded parts of slices that are not committed."""
        return float(sum(getattr(part, name) for part in self._open_parts.values()))

    @property
    def shown_share(self) -> float:
        """Share of the input's bytes that is committed, or encoded in a slice that takes long."""
        if not self.total_bytes:
            return 1.0
        return min(self.share + self._open("input_bytes") / self.total_bytes, 1.0 if self.share == 1.0 else 0.999)

    @property
    def run_share(self) -> float:
        """The same of what the run is to do: with a limit, share of the rows that it asks for."""
        return self.shown_share if self.limit is None else min(1.0, (self.totals.rows + self._open("rows")) / self.limit)

    @property
    def seconds_left(self) -> float | None:
        """Seconds left, by the remaining tokens and the rate of the last minute; None before anything is encoded."""
        if self.limit is not None:
            rate = self.recent.rate("rows", self._view)
            return max(0, self.limit - self.totals.rows - self._open("rows")) / rate if rate else None
        rate = self.recent.rate("tokens", self._view)
        left = self.totals.tokens_left(self.total_bytes, self._open("input_bytes"), self._open("tokens"))
        return left / rate if rate else None

    def report(self) -> LiveReport:
        """The figures that other machines see in the run's lease."""
        with self._lock:
            return LiveReport(
                share=self.shown_share,
                rows=self.new.rows,
                rows_per_second=self.recent.rate("rows", self._view),
                tokens_per_second=self.recent.rate("tokens", self._view),
                seconds_left=self.seconds_left,
                doing=" · ".join([*self._bottleneck(), *self._in_progress()]),
            )

    def sentence(self) -> str:
        """Describes what this run has committed, for a notebook that is read later."""
        new = self.new
        committed = f"{plural(new.slices, 'slice', 'were')} committed in {duration(self.seconds)}"
        return f"{committed}: {plural(new.rows, 'row')}, {self.run_share:.1%} done."

    def line(self) -> str:
        """Committed slices, share, rates of the last minute, time left, rejected rows."""
        return " · ".join(self._parts())

    def _parts(self) -> list[str]:
        parts = [
            f"{plural(self.totals.slices, 'slice')}",
            f"{self.run_share:.1%}",
            f"{self.recent.rate('rows', self._view):,.0f} rows/s",
            f"{self.recent.rate('tokens', self._view):,.0f} tokens/s",
            "starting" if self.seconds_left is None else f"{duration(self.seconds_left)} left",
        ]
        if rejected := self.totals.rejected:
            parts.append(f"{rejected:,} rejected")
        return parts

    def _bottleneck(self) -> list[str]:
        """The bottleneck, if it is known."""
        return [bottleneck(self._view, self._occupancy.busy)] if self._view else []

    def _in_progress(self) -> list[str]:
        """The progress within slices that take long."""
        doing = self._view.doing if self._view else ()
        shares = [item.part.share for item in doing if item.part]
        if not shares:
            return []
        average = " on average" if len(shares) > 1 else ""
        return [f"{plural(len(shares), 'slice')} in progress: {sum(shares) / len(shares):.0%} encoded{average}"]

    def panel(self) -> RenderableType:
        """The live view: progress, rates, stages, bottleneck."""
        with self._lock:
            return self._panel()

    def _panel(self) -> RenderableType:
        held_up = self._bottleneck()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=self.run_share, width=BAR_WIDTH), Text(self.line()))
        if not self._view:
            return bar
        stages = Table.grid(padding=(0, 2))
        count = max(1, len(self.recent))
        for stage in STAGES:
            at = sum(doing.stage == stage for doing in self._view.doing)
            more = f"{self.recent.total(f'{stage}_seconds') / count:.2f} s per slice" if len(self.recent) else ""
            if stage == "encode" and len(self.recent):
                more += f", batches {self.recent.fill:.1%} full"
            workers = f"{at} busy"
            if stage == "encode":
                workers = f"{at} of {self._view.encoders_ready + self._view.encoders_starting} busy"
                more = ", ".join(filter(None, [more, *self._in_progress()]))
            stages.add_row(Text(f"  {stage}"), Text(workers), Text(more))
        return Group(bar, stages, Text("  " + held_up[0], style="bold"))
