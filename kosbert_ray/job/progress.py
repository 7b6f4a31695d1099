"""What a person sees of a run: a live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kosbert_ray.shards.receipt import Receipt

LOG_SECONDS = 10.0
REFRESH_PER_SECOND = 4


@dataclass
class Totals:
    """Sums over receipts."""

    slices: int = 0
    rows: int = 0
    rejected: int = 0
    distinct: int = 0
    tokens: int = 0
    encoded_tokens: int = 0
    split: int = 0
    truncated: int = 0
    dropped_tokens: int = 0
    input_bytes: int = 0
    output_bytes: int = 0

    @staticmethod
    def of(receipts: Iterable[Receipt]) -> Totals:
        """Their sums."""
        totals = Totals()
        for receipt in receipts:
            totals.add(receipt)
        return totals

    def add(self, receipt: Receipt) -> None:
        """Takes one receipt in."""
        self.slices += bool(receipt.shard)
        for name in list(vars(self))[1:]:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))

    def long_texts(self) -> str:
        """What became of the texts that were too long."""
        cut_off = f"{self.truncated:,} rows truncated by {self.dropped_tokens:,} tokens"
        if not self.split:
            return cut_off
        return f"{self.split:,} long texts in chunks" + (f", {cut_off}" if self.truncated else "")


def _console() -> Console:
    """Standard error, or what stands below a notebook's cell."""
    console = Console()
    return console if console.is_jupyter else Console(file=sys.stderr)


@dataclass
class Progress:
    """Counts receipts as they come and shows how far the run is.

    Args:
        total_bytes: bytes of the whole corpus: the measure of progress and of the time left.
        done: what earlier runs had committed.
        log: takes each line with the figures in it, in place of the console.
    """

    total_bytes: int
    done: Totals
    console: Console = field(default_factory=_console)
    clock: Callable[[], float] = time.monotonic
    log: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        self.new = Totals()
        self.first_at: float | None = None  # seconds until the first slice was committed
        self._started = self._logged = self.clock()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if not self.log and (self.console.is_terminal or self.console.is_jupyter):
            self._live = Live(
                get_renderable=lambda: Text(self.line()), console=self.console, refresh_per_second=REFRESH_PER_SECOND
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
        elif self.new.slices:
            self._print()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self.clock() - self._started

    def add(self, receipt: Receipt) -> None:
        """One more slice is committed."""
        self.new.add(receipt)
        if self.first_at is None:
            self.first_at = self.seconds
        if self._live is None and self.clock() - self._logged >= LOG_SECONDS:
            self._print()

    def _print(self) -> None:
        self._logged = self.clock()
        if self.log:
            self.log(self.line(), event="progress", share=self.share, new=asdict(self.new), seconds=self.seconds)
            return
        self.console.print(self.line(), highlight=False, soft_wrap=True)

    @property
    def share(self) -> float:
        """Of the input's bytes, that are committed."""
        read = self.done.input_bytes + self.new.input_bytes
        return min(1.0, read / self.total_bytes) if self.total_bytes else 1.0

    def line(self) -> str:
        """Slices, share done, rates of this run, time left, rejected rows."""
        seconds = max(self.seconds, 1e-9)
        parts = [
            f"{self.done.slices + self.new.slices:,} slices",
            f"{self.share:.1%}",
            f"{self.new.rows / seconds:,.0f} rows/s",
            f"{self.new.tokens / seconds:,.0f} tokens/s",
        ]
        if self.new.input_bytes:
            left = (self.total_bytes - self.done.input_bytes - self.new.input_bytes) / (self.new.input_bytes / seconds)
            parts.append(f"{duration(max(0.0, left))} left")
        else:
            parts.append("starting")
        if rejected := self.done.rejected + self.new.rejected:
            parts.append(f"{rejected:,} rejected")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """``3 s``, ``2 min 5 s``, ``4 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
