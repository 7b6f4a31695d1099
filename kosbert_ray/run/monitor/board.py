"""An actor that tracks what each worker is doing.

It outlives the workers, so it knows how often a slice has killed its worker (Ray would retry forever), and what a stalled
run is waiting for.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kosbert_ray.errors import JobFailed

MAX_ATTEMPTS = 4  # a slice that has killed this many workers is not retried
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Doing:
    """One worker's current task: stage ("read", "tokenize", "encode", "write"), slice, host, and seconds since it began."""

    stage: str
    what: str
    host: str
    seconds: float


@dataclass(frozen=True)
class View:
    """A snapshot of all workers.

    Attributes:
        doing: current tasks, the longest first.
        encoders_starting: encoders that were placed and are loading their model.
        encoders_ready: encoders that accept slices.
        trouble: recent problems with stores: seconds since each message.
        retries: slices retried after they killed a worker, by stage.
    """

    doing: tuple[Doing, ...] = ()
    encoders_starting: int = 0
    encoders_ready: int = 0
    trouble: dict[str, float] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)


class _Notices:
    """The actor."""

    def __init__(self) -> None:
        self.doing: dict[tuple[str, str], tuple[str, float]] = {}
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.starting: set[str] = set()
        self.ready: set[str] = set()
        self.starts_in_vain = 0
        self.trouble: dict[str, float] = {}
        self.retries: Counter[str] = Counter()

    def begin(self, stage: str, what: str, host: str) -> int:
        self.attempts[stage, what] += 1
        if self.attempts[stage, what] > 1:
            self.retries[stage] += 1
        self.doing[stage, what] = (host, time.monotonic())
        return self.attempts[stage, what]

    def end(self, stage: str, what: str) -> None:
        self.doing.pop((stage, what), None)
        self.attempts.pop((stage, what), None)

    def start_encoder(self, name: str) -> int:
        self.starting.add(name)
        self.starts_in_vain += 1
        return self.starts_in_vain

    def encoder_ready(self, name: str) -> None:
        self.starting.discard(name)
        self.ready.add(name)
        self.starts_in_vain = 0

    def report_trouble(self, text: str) -> None:
        self.trouble[text] = time.monotonic()

    def snapshot(self) -> View:
        now = time.monotonic()
        doing = (Doing(*key, host, now - since) for key, (host, since) in self.doing.items())
        return View(
            tuple(sorted(doing, key=lambda item: -item.seconds)),
            len(self.starting),
            len(self.ready),
            {text: now - at for text, at in self.trouble.items()},
            dict(self.retries),
        )


@dataclass(frozen=True)
class Board:
    """A handle that travels to the workers. Work continues if the actor does not answer."""

    actor: Any

    @staticmethod
    def start() -> Board:
        """Starts the actor on the driver's node."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(_Notices).options(num_cpus=0, max_restarts=-1, max_task_retries=2, scheduling_strategy=here)
        return Board(actor.remote())

    @contextmanager
    def working_on(self, stage: str, what: str) -> Iterator[int]:
        """Marks a worker as busy until the block ends, and yields the attempt, counted from 1.

        The mark remains if the worker dies.
        """
        _forward_storage_log(self)
        attempt = self._ask(1, self.actor.begin, stage, what, socket.gethostname())
        try:
            yield attempt
        finally:
            self.actor.end.remote(stage, what)

    def start_encoder(self, name: str, encoders: int) -> None:
        """Records that an encoder starts to load.

        Raises:
            JobFailed: too many have started without any becoming ready.
        """
        _forward_storage_log(self)
        if self._ask(1, self.actor.start_encoder, name) > MAX_ATTEMPTS * encoders:
            raise JobFailed(
                f"encoders die while starting ({MAX_ATTEMPTS} times each, the last on {socket.gethostname()}); check that "
                "there is enough memory for the model, or start fewer encoders (encoder.actors)"
            )

    def encoder_ready(self, name: str) -> None:
        """Records that an encoder is ready."""
        self.actor.encoder_ready.remote(name)

    def report_trouble(self, text: str) -> None:
        """Records a problem that is being retried."""
        self.actor.report_trouble.remote(text)

    def snapshot(self, timeout: float = ANSWER_SECONDS) -> View | None:
        """The current state; None if the actor does not answer."""
        try:
            view: View = ray.get(self.actor.snapshot.remote(), timeout=timeout)
        except RayError:
            return None
        return view

    def _ask(self, default: int, method: Any, *arguments: str) -> int:
        try:
            return int(ray.get(method.remote(*arguments), timeout=ANSWER_SECONDS))
        except RayError:
            return default


class _Forward(logging.Handler):
    def __init__(self, board: Board) -> None:
        super().__init__(logging.WARNING)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a problem with a store to the board."""
        self.board.report_trouble(record.getMessage())


def _forward_storage_log(board: Board) -> None:
    """Sends storage warnings of this process to the board instead of the worker's log."""
    log = logging.getLogger("kosbert_ray.storage")
    if not any(isinstance(handler, _Forward) for handler in log.handlers):
        log.addHandler(_Forward(board))
        log.propagate = False
