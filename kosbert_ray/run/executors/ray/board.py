"""The board as an actor. It outlives the workers, so it knows how often a slice has killed one; Ray would retry forever."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kosbert_ray.run.monitor.board import ANSWER_SECONDS, Board, BoardState


@dataclass(frozen=True)
class ActorBoard(Board):
    """A handle that travels to the workers."""

    actor: Any

    @staticmethod
    def start() -> ActorBoard:
        """Starts the actor on the driver's node."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(BoardState).options(num_cpus=0, max_restarts=-1, max_task_retries=2, scheduling_strategy=here)
        return ActorBoard(actor.remote())

    def _ask(self, default: Any, method: str, *arguments: Any, timeout: float = ANSWER_SECONDS) -> Any:
        if method != "snapshot":  # which the driver asks for
            _forward_storage_log(self)
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments), timeout=timeout)
        except RayError:
            return default

    def _send(self, method: str, *arguments: Any) -> None:
        getattr(self.actor, method).remote(*arguments)


class _Forward(logging.Handler):
    def __init__(self, board: Board) -> None:
        super().__init__(logging.WARNING)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a problem with a store to the board."""
        self.board.report_trouble(record.getMessage())


def _forward_storage_log(board: Board) -> None:
    """Sends storage warnings of this worker to the board instead of the worker's log."""
    log = logging.getLogger("kosbert_ray.storage")
    if not any(isinstance(handler, _Forward) for handler in log.handlers):
        log.addHandler(_Forward(board))
        log.propagate = False
