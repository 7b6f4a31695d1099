"""The executor protocol, and what every executor shares. Loads neither Ray nor torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from kosbert_ray.corpus.fragments import Fragment, Limits
from kosbert_ray.corpus.options import MAX_ROWS
from kosbert_ray.encoder.options import EncoderOptions, require_possible
from kosbert_ray.encoder.plain_speed import plain_bytes_per_second

if TYPE_CHECKING:
    import pyarrow as pa

    from kosbert_ray.encoder.tokenizer import Tokenizer
    from kosbert_ray.model.spec import ModelSpec
    from kosbert_ray.run.monitor.board import Board
    from kosbert_ray.run.monitor.throughput import Recent
    from kosbert_ray.run.shared_vectors import SharedTexts
    from kosbert_ray.run.shuffle import Shuffle
    from kosbert_ray.run.stages.work import Outcome, Work
    from kosbert_ray.shards.receipt import Receipt

CPU_BUNDLE_SECONDS, GPU_BUNDLE_SECONDS = 1.0, 2.0  # of a plain device
GPU_BUNDLE_ROWS = 4 * MAX_ROWS  # with 768 numbers each: 200 MB of vectors
PARTS_PER_ENCODER = 8  # at least, where input files are small: so that encoders finish at the same time
GROWTH = 8  # of the pool, for which there are enough parts

# Fragments with open slices, each with the indices of its committed ones.
Pending = list[tuple[Fragment, frozenset[int]]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class EncoderPool:
    """Number and size of the encoders.

    Attributes:
        minimum, maximum: number of encoders. The pool grows into this range while nodes join.
        cpus, gpus: resources of each.
        threads: CPU threads of each.
        per_node: most encoders on one node.
        local: whether all of them run on this machine.
    """

    minimum: int
    maximum: int
    cpus: int
    gpus: int
    threads: int
    per_node: int = 1
    local: bool = True

    def bundle_limits(self, spec: ModelSpec, most_bytes: int | None = None) -> Limits:
        """The most rows and bytes of small slices that travel together: so many that moving them costs little beside
        encoding them, so few that they are committed soon.

        Args:
            spec: the model.
            most_bytes: the most bytes of text whose vectors fit into one row; None for any.
        """
        seconds, rows = (GPU_BUNDLE_SECONDS, GPU_BUNDLE_ROWS) if self.gpus else (CPU_BUNDLE_SECONDS, MAX_ROWS)
        size = round(seconds * plain_bytes_per_second(spec, self.gpus > 0))
        return Limits(rows, size if most_bytes is None else min(size, most_bytes))

    def bundle_input_bytes(self, input_bytes: int) -> int:
        """The most bytes of stored input that travel in one row, so that every encoder gets its share."""
        return input_bytes // (PARTS_PER_ENCODER * min(self.maximum, GROWTH * self.minimum))

    def encoder_options(self, options: EncoderOptions) -> EncoderOptions:
        """The options of one encoder: the preferred engine is for CPUs. Raises UsageError if they do not fit together."""
        chosen = options.model_copy(update={"threads": self.threads})
        if self.gpus:
            chosen = chosen.model_copy(update={"device": "cuda", "engine": "torch"})
        on_cpu = chosen.device == "auto" and sys.platform != "darwin"
        require_possible(chosen.model_copy(update={"device": "cpu"}) if on_cpu else chosen)
        return chosen


class SliceMetrics(Protocol):
    """Publishes figures of a run's slices."""

    def committed(self, receipt: Receipt, progress: float) -> None:
        """Records a committed slice.

        Args:
            receipt: the slice.
            progress: share of the input's bytes that is committed.
        """
        ...

    def failed(self) -> None:
        """Records a failed slice."""
        ...


class Executor(Protocol):
    """Runs the stages of a job.

    An executor's module has a function ``started(config: JobConfig) -> AbstractContextManager[Executor]``, and an entry in
    :data:`~kosbert_ray.run.executors.table.EXECUTORS` names the module. Every executor runs the same stage functions, so
    all of them write the same shards.

    Attributes:
        name: its key in the table.
    """

    name: str

    def encoder_pool(self, options: EncoderOptions, input_bytes: int) -> EncoderPool:
        """Sizes the encoder pool.

        Args:
            options: the options.
            input_bytes: size of the corpus; a small one does not repay the start of many encoders.

        Raises:
            JobFailed: there is no GPU, and the options ask for one.
        """
        ...

    def start_board(self) -> Board:
        """Starts the board of one pass."""
        ...

    def slice_metrics(self, board: Board, pool: EncoderPool, output: str, recent: Recent) -> SliceMetrics:
        """Publishes the metrics of one pass.

        Args:
            board: tracks the workers.
            pool: the requested encoders.
            output: address of the output.
            recent: receipts of the last minute.
        """
        ...

    def describe_resources(self, pool: EncoderPool) -> str:
        """Describes requested and free resources in one line."""
        ...

    def outcomes(
        self, work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None, pending: Pending, pool: EncoderPool
    ) -> Generator[Outcome, None, None]:
        """Runs the open slices and yields each outcome as soon as it is known.

        Args:
            work: the job.
            tokenizer: the model's tokenizer.
            shared_texts: texts whose vectors are ``work.shared``.
            pending: the open slices.
            pool: number and size of the encoders.

        Raises:
            DeviceBroken: this process can no longer use the GPU.
            KosbertError: any other error of a stage.
        """
        ...

    def call(self, pool: EncoderPool, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs a function where an encoder would run; raises KosbertError."""
        ...

    def shuffle(self, shuffle: Shuffle) -> pa.Table:
        """Runs a shuffle; returns what its ``write`` returns for all partitions. Raises KosbertError."""
        ...

    def remove_everywhere(self, folder: str) -> None:
        """Deletes a folder on every node that answers."""
        ...
