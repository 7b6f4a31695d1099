"""Tracks what each worker is doing: how often a slice has killed its worker, and what a stalled run is waiting for."""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kosbert_ray.errors import JobFailed

MAX_ATTEMPTS = 4  # a slice that has killed this many workers is not retried
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Part:
    """The part of a slice that is encoded.

    Attributes:
        share: of its tokens, from 0 to 1.
        tokens, rows, input_bytes: the same share of the slice's tokens, rows and bytes of stored input.
    """

    share: float
    tokens: float
    rows: float
    input_bytes: float


@dataclass(frozen=True)
class Doing:
    """One worker's current task.

    Attributes:
        stage: "read", "tokenize", "encode" or "write".
        what: the slice.
        host: the worker's host.
        seconds: time since it began.
        part: what is encoded of a slice that takes long; None if it is not known.
    """

    stage: str
    what: str
    host: str
    seconds: float
    part: Part | None = None


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


class BoardState:
    """The state behind a board, kept in one place, whichever process asks."""

    def __init__(self) -> None:
        self.doing: dict[tuple[str, str], tuple[str, float]] = {}
        self.parts: dict[tuple[str, str], Part] = {}
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.starting: set[str] = set()
        self.ready: set[str] = set()
        self.starts_in_vain: Counter[str] = Counter()  # by host
        self.trouble: dict[str, float] = {}
        self.retries: Counter[str] = Counter()

    def begin(self, stage: str, what: str, host: str) -> int:
        """Records that a worker begins; returns the attempt, counted from 1."""
        self.attempts[stage, what] += 1
        if self.attempts[stage, what] > 1:
            self.retries[stage] += 1
        self.doing[stage, what] = (host, time.monotonic())
        return self.attempts[stage, what]

    def end(self, stage: str, what: str) -> None:
        """Records that a worker is done."""
        self.doing.pop((stage, what), None)
        self.parts.pop((stage, what), None)
        self.attempts.pop((stage, what), None)

    def report_part(self, stage: str, what: str, part: Part) -> None:
        """Records how much of a task is done."""
        if (stage, what) in self.doing:
            self.parts[stage, what] = part

    def start_encoder(self, name: str) -> int:
        """Records that an encoder, ``HOST:PROCESS``, starts; returns how many have started there since one became ready."""
        host = name.partition(":")[0]
        self.starting.add(name)
        self.starts_in_vain[host] += 1
        return self.starts_in_vain[host]

    def encoder_ready(self, name: str) -> None:
        """Records that an encoder is ready."""
        self.starting.discard(name)
        self.ready.add(name)
        self.starts_in_vain.pop(name.partition(":")[0], None)

    def report_trouble(self, text: str) -> None:
        """Records a problem that is being retried."""
        self.trouble[text] = time.monotonic()

    def snapshot(self) -> View:
        """The current state."""
        now = time.monotonic()
        doing = (Doing(*key, host, now - since, self.parts.get(key)) for key, (host, since) in self.doing.items())
        return View(
            tuple(sorted(doing, key=lambda item: -item.seconds)),
            len(self.starting),
            len(self.ready),
            {text: now - at for text, at in self.trouble.items()},
            dict(self.retries),
        )


class Board(ABC):
    """A handle on the state, used by every stage. Work continues if the state does not answer."""

    @contextmanager
    def working_on(self, stage: str, what: str) -> Iterator[int]:
        """Marks a worker as busy until the block ends, and yields the attempt, counted from 1.

        The mark remains if the worker dies.
        """
        attempt = self._ask(1, "begin", stage, what, socket.gethostname())
        try:
            yield attempt
        finally:
            self._send("end", stage, what)

    def start_encoder(self, name: str, encoders: int) -> None:
        """Records that an encoder starts to load.

        Args:
            name: ``HOST:PROCESS``.
            encoders: most encoders on a host.

        Raises:
            JobFailed: too many have started without any becoming ready.
        """
        if self._ask(1, "start_encoder", name) > MAX_ATTEMPTS * encoders:
            raise JobFailed(
                f"encoders die while starting ({MAX_ATTEMPTS} times each, the last on {socket.gethostname()}); check that "
                "there is enough memory for the model, or start fewer encoders (encoder.actors)"
            )

    def encoder_ready(self, name: str) -> None:
        """Records that an encoder is ready."""
        self._send("encoder_ready", name)

    def report_part(self, stage: str, what: str, part: Part) -> None:
        """Records how much of a task is done."""
        self._send("report_part", stage, what, part)

    def report_trouble(self, text: str) -> None:
        """Records a problem that is being retried."""
        self._send("report_trouble", text)

    def snapshot(self, timeout: float = ANSWER_SECONDS) -> View | None:
        """The current state; None if there is no answer within ``timeout`` seconds."""
        view: View | None = self._ask(None, "snapshot", timeout=timeout)
        return view

    @abstractmethod
    def _ask(self, default: Any, method: str, *arguments: Any, timeout: float = ANSWER_SECONDS) -> Any:
        """Calls a method of the state; returns ``default`` if there is no answer."""

    @abstractmethod
    def _send(self, method: str, *arguments: Any) -> None:
        """Calls a method of the state without waiting for it."""
