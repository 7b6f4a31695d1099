"""Metrics of a run as Ray counters and gauges, which every node serves to Prometheus.

The driver computes them from receipts and the board, so each run has one series per metric and workers spend no time on it.
"""

from __future__ import annotations

import logging
import string
import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import quote

from ray.util import metrics

from kosbert_ray.run.executors.base import EncoderPool
from kosbert_ray.run.monitor.board import Board
from kosbert_ray.run.monitor.throughput import REASONS, WINDOW_SECONDS, Recent, waiting_for
from kosbert_ray.shards.receipt import STAGES, Receipt

LOOK_SECONDS = 5.0
ANSWER_SECONDS = 2.0

TAGS = ("output",)
SAFE = string.punctuation + " "  # not escaped, so that tags of ASCII addresses do not change
log = logging.getLogger(__name__)

COUNTERS = {
    "slices": "Slices committed",
    "rows": "Rows with a vector",
    "rejected_rows": "Rows rejected",
    "truncated_rows": "Rows longer than the model's maximum",
    "tokens": "Tokens of all rows",
    "encoded_tokens": "Tokens that went through the model, duplicates once",
    "computed_tokens": "Tokens that the model computed, padding included",
    "batches": "Batches that went through the model",
    "input_bytes": "Bytes of stored input read",
    "output_bytes": "Bytes of shards written",
    "encoder_wait_seconds": "Seconds in which encoders were idle",
}
GAUGES = {
    "progress": "Share of the input bytes that is committed",
    "encoders": "Encoders that are ready",
    "encoder_busy": "Share of the last minute in which encoders were busy",
    "batch_fill": "Share of the computed tokens of the last minute that were not padding",
    "store_trouble": "Distinct problems with stores in the last minute",
}


def ascii_tag(value: str) -> str:
    """Percent-encodes non-ASCII characters of a tag, because Ray's metrics accept ASCII only."""
    return quote(value.encode("utf-8", "surrogateescape"), safe=SAFE)


def _never_fatal(record: Callable[..., None]) -> Callable[..., None]:
    """Makes errors while recording a metric harmless to the run."""

    @wraps(record)
    def guarded(*args: Any) -> None:
        try:
            record(*args)
        except Exception:
            log.debug("metrics: cannot be recorded", exc_info=True)

    return guarded


class RayMetrics:
    """Implements ``SliceMetrics`` with series named ``kosbert_…`` (in Prometheus ``ray_kosbert_…``) and the tag ``output``.

    Args:
        board: tracks the workers.
        pool: the requested encoders.
        output: address of the output.
        recent: receipts of the last minute, kept by the caller of :meth:`committed`.
    """

    def __init__(self, board: Board, pool: EncoderPool, output: str, recent: Recent) -> None:
        self._board = board
        self._tags = {"output": ascii_tag(output)}
        self._counters = {name: metrics.Counter(f"kosbert_{name}", about, TAGS) for name, about in COUNTERS.items()}
        self._gauges = {name: metrics.Gauge(f"kosbert_{name}", about, TAGS) for name, about in GAUGES.items()}
        self._stage_seconds = metrics.Counter("kosbert_stage_seconds", "Seconds of work in each stage", (*TAGS, "stage"))
        self._retries = metrics.Counter("kosbert_retries", "Slices retried after a worker died", (*TAGS, "stage"))
        self._failed = metrics.Counter("kosbert_failed_slices", "Slices that failed", TAGS)
        self._waiting = metrics.Gauge(
            "kosbert_encoder_waiting", "1 for what encoders wait for, 0 for everything else", (*TAGS, "reason")
        )
        self._recent = recent
        self._retried: dict[str, int] = {}
        self._looked = 0.0
        self._asked = metrics.Gauge("kosbert_encoders_asked", "Encoders that the job starts with", TAGS)
        self._start(pool.minimum)

    @_never_fatal
    def _start(self, encoders: int) -> None:
        self._asked.set(encoders, self._tags)

    @_never_fatal
    def committed(self, receipt: Receipt, progress: float) -> None:
        """Records a committed slice.

        Args:
            receipt: the slice.
            progress: share of the input's bytes that is committed.
        """
        values = {
            "slices": bool(receipt.shard),
            "rejected_rows": receipt.rejected,
            "truncated_rows": receipt.truncated,
            "encoder_wait_seconds": receipt.wait_seconds,
        }
        for name, counter in self._counters.items():
            value = values[name] if name in values else getattr(receipt, name)
            if value > 0:
                counter.inc(value, self._tags)
        for stage in STAGES:
            seconds = getattr(receipt, f"{stage}_seconds")
            if seconds > 0:
                self._stage_seconds.inc(seconds, {**self._tags, "stage": stage})
        self._gauges["progress"].set(progress, self._tags)
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._look()

    @_never_fatal
    def failed(self) -> None:
        """Records a failed slice."""
        self._failed.inc(1, self._tags)

    def _look(self) -> None:
        self._gauges["encoder_busy"].set(self._recent.busy, self._tags)
        self._gauges["batch_fill"].set(self._recent.fill, self._tags)
        view = self._board.snapshot(ANSWER_SECONDS)
        if view is None:
            return
        self._gauges["encoders"].set(view.encoders_ready, self._tags)
        self._gauges["store_trouble"].set(sum(seconds < WINDOW_SECONDS for seconds in view.trouble.values()), self._tags)
        reason = waiting_for(view, self._recent.busy)
        for name in REASONS:
            self._waiting.set(name == reason, {**self._tags, "reason": name})
        for stage, count in view.retries.items():
            new = count - self._retried.get(stage, 0)
            if new:
                self._retries.inc(new, {**self._tags, "stage": stage})
                self._retried[stage] = count
