"""Ray as an executor: tasks and actors on a cluster, or on a local Ray that is started for the run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kosbert_ray.config import JobConfig
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import KosbertError
from kosbert_ray.run.executors.base import EncoderPool, Pending, SliceMetrics
from kosbert_ray.run.executors.ray import pipeline, session, shuffles
from kosbert_ray.run.executors.ray.board import ActorBoard
from kosbert_ray.run.executors.ray.errors import error_of
from kosbert_ray.run.executors.ray.metrics import RayMetrics
from kosbert_ray.run.monitor.board import Board
from kosbert_ray.run.monitor.throughput import Recent
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.shuffle import Shuffle
from kosbert_ray.run.stages.work import Outcome, Work

REMOVE_SECONDS = 10.0

Result = TypeVar("Result")


@contextlib.contextmanager
def started(config: JobConfig) -> Iterator[RayExecutor]:
    """Joins or starts Ray until the block ends; raises JobFailed if that fails."""
    with session.joined(config.ray), session.data_settings():
        yield RayExecutor()


class RayExecutor:
    """Implements :class:`~kosbert_ray.run.executors.base.Executor` on the Ray in use."""

    name = "ray"

    def encoder_pool(self, options: EncoderOptions, input_bytes: int) -> EncoderPool:
        """Sizes the pool for the cluster."""
        return session.encoder_pool(options, input_bytes)

    def start_board(self) -> Board:
        """Starts the board's actor."""
        return ActorBoard.start()

    def slice_metrics(self, board: Board, pool: EncoderPool, output: str, recent: Recent) -> SliceMetrics:
        """Publishes metrics through Ray."""
        return RayMetrics(board, pool, output, recent)

    def describe_resources(self, pool: EncoderPool) -> str:
        """Describes the requested encoders and what is free in the cluster."""
        try:
            total, free = ray.cluster_resources(), ray.available_resources()
        except RayError:
            return "the cluster does not answer"
        each = " and ".join(
            f"{amount} {name}{'s' * (amount > 1)}" for name, amount in (("GPU", pool.gpus), ("CPU", pool.cpus)) if amount
        )
        of = ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in ("GPU", "CPU"))
        return f"{pool.minimum} requested, each with {each or 'no CPU of its own'}; {of}"

    def outcomes(
        self, work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None, pending: Pending, pool: EncoderPool
    ) -> Generator[Outcome, None, None]:
        """Runs the open slices on Ray Data."""
        return pipeline.run(work, tokenizer, shared_texts, pending, pool)

    def call(self, pool: EncoderPool, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs a function in a task with an encoder's resources."""
        # max_calls=1 ends the process, which frees the GPU's memory.
        task: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(function)
        try:
            result: Result = ray.get(task.remote(*arguments))
        except KosbertError:
            raise
        except Exception as error:
            raise error_of(error) from error
        return result

    def shuffle(self, shuffle: Shuffle) -> pa.Table:
        """Runs a shuffle on Ray Data."""
        try:
            return shuffles.run(shuffle)
        except Exception as error:
            raise error_of(error) from error

    def remove_everywhere(self, folder: str) -> None:
        """Deletes a folder on every node that answers."""
        task: Any = ray.remote(num_cpus=0)(shutil.rmtree)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
        left = [task.options(scheduling_strategy=place).remote(folder, ignore_errors=True) for place in places]
        with contextlib.suppress(RayError):
            ray.wait(left, num_returns=len(left), timeout=REMOVE_SECONDS)
