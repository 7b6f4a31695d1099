"""What every worker is at, kept by one small actor beside the driver.

It outlives the workers, so it knows two things that they cannot: how often a slice has taken its worker down with it (Ray
itself would try for ever), and what a run that makes no headway is waiting for.
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

MAX_ATTEMPTS = 4  # a slice that has killed this many workers is not given to another
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Doing:
    """One worker at one thing: a stage ("read", "tokenize", "encode", "write"), a slice, a host, and for how long."""

    stage: str
    what: str
    host: str
    seconds: float


@dataclass(frozen=True)
class View:
    """What the board shows at one moment.

    Attributes:
        doing: what workers are at, the longest first.
        encoders_starting: encoders that have a place in the cluster and load their model.
        encoders_ready: encoders that can take slices.
        trouble: what a store last answered instead of what it was asked, by message: seconds ago.
        retries: how often a slice was begun anew after it had taken its worker down, by stage.
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
    """A handle of the board that travels to the workers. A board that does not answer never stops the work."""

    actor: Any

    @staticmethod
    def start() -> Board:
        """Starts the actor on the driver's node."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(_Notices).options(num_cpus=0, max_restarts=-1, max_task_retries=2, scheduling_strategy=here)
        return Board(actor.remote())

    @contextmanager
    def working_on(self, stage: str, what: str) -> Iterator[int]:
        """While a worker is at something; gives which attempt this is, from 1. Not ended by the worker's death."""
        _forward_storage_log(self)
        attempt = self._ask(1, self.actor.begin, stage, what, socket.gethostname())
        try:
            yield attempt
        finally:
            self.actor.end.remote(stage, what)

    def start_encoder(self, name: str, encoders: int) -> None:
        """An encoder begins to load.

        Raises:
            JobFailed: so many have begun, and none was ever ready, that no more will be.
        """
        _forward_storage_log(self)
        if self._ask(1, self.actor.start_encoder, name) > MAX_ATTEMPTS * encoders:
            raise JobFailed(
                f"encoders die while they start ({MAX_ATTEMPTS} times each, the last on {socket.gethostname()}): "
                "is there memory for the model? fewer encoders need less (encoder.actors)"
            )

    def encoder_ready(self, name: str) -> None:
        """An encoder has loaded."""
        self.actor.encoder_ready.remote(name)

    def report_trouble(self, text: str) -> None:
        """Something does not go as it should, and is tried again."""
        self.actor.report_trouble.remote(text)

    def snapshot(self, timeout: float = ANSWER_SECONDS) -> View | None:
        """What is going on; None if the board does not answer."""
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
        """A store's trouble, from this worker to the board."""
        self.board.report_trouble(record.getMessage())


def _forward_storage_log(board: Board) -> None:
    """Once a process: what the stores answer is shown on the board instead of in a worker's log."""
    log = logging.getLogger("kosbert_ray.storage")
    if not any(isinstance(handler, _Forward) for handler in log.handlers):
        log.addHandler(_Forward(board))
        log.propagate = False
