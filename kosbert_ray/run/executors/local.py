"""The local executor: the stages in threads of this process, for little work on one machine.

One thread reads and tokenizes ahead, the calling thread encodes, one thread writes. There is no isolation: what kills a
worker on Ray kills the run here, and the next run of that output takes Ray.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.config import JobConfig
from kosbert_ray.encoder.options import EncoderOptions, has_gpu, usable_cores, visible_gpus
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import JobFailed
from kosbert_ray.run.executors.base import EncoderPool, Pending, SliceMetrics
from kosbert_ray.run.monitor.board import ANSWER_SECONDS, Board, BoardState
from kosbert_ray.run.monitor.throughput import Recent
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.shuffle import PARTITION, Shuffle
from kosbert_ray.run.stages.encode import EncodeSlices
from kosbert_ray.run.stages.read import read_slices
from kosbert_ray.run.stages.tokenize import tokenize
from kosbert_ray.run.stages.work import Outcome, Work
from kosbert_ray.run.stages.write import write
from kosbert_ray.shards.receipt import Receipt

AHEAD = 2  # bundles that are tokenized before the encoder asks for them, or wait to be written
WRITE_SECONDS = 0.1  # a write that takes longer is reported after the next bundle is encoded
STOP_SECONDS = 5.0  # how long an error waits for a write in progress
PARTITIONS_AT_ONCE = 8  # of the shuffle: 0.5 GiB of stored input

Result = TypeVar("Result")


@contextlib.contextmanager
def started(_config: JobConfig) -> Iterator[LocalExecutor]:
    """Returns the executor; there is nothing to start."""
    yield LocalExecutor()


class LocalExecutor:
    """Implements :class:`~kosbert_ray.run.executors.base.Executor` in this process, with one encoder."""

    name = "local"

    def encoder_pool(self, options: EncoderOptions, input_bytes: int) -> EncoderPool:
        """Returns a pool of one encoder with all usable cores, or with a GPU."""
        del input_bytes
        if options.device == "cuda" and not visible_gpus():
            raise JobFailed("encoder.device is cuda, but this machine has no GPU; use encoder.device=cpu")
        on_gpu = has_gpu(options)
        threads = 1 if on_gpu else options.threads or usable_cores()
        return EncoderPool(1, 1, cpus=threads, gpus=int(on_gpu), threads=threads)

    def start_board(self) -> Board:
        """Returns a board in this process."""
        return _Board()

    def slice_metrics(self, board: Board, pool: EncoderPool, output: str, recent: Recent) -> SliceMetrics:
        """Publishes nothing: there is no Ray that serves metrics."""
        del board, pool, output, recent
        return _NoMetrics()

    def describe_resources(self, pool: EncoderPool) -> str:
        """Describes the one encoder."""
        return f"one encoder in this process, with {f'{pool.gpus} GPU' if pool.gpus else f'{pool.threads} threads'}"

    def outcomes(
        self, work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None, pending: Pending, pool: EncoderPool
    ) -> Generator[Outcome, None, None]:
        """Runs the open slices in three threads."""
        del pool
        tokenized = (tokenize(slices, work, tokenizer, shared_texts) for slices in read_slices(work, pending))
        reader, writer = ThreadPoolExecutor(1, "reader"), ThreadPoolExecutor(1, "writer")
        coming = deque(reader.submit(next, tokenized, None) for _ in range(AHEAD))
        writing: deque[Future[list[Outcome]]] = deque()
        try:
            encode = EncodeSlices(work)
            while (slices := coming.popleft().result()) is not None:
                coming.append(reader.submit(next, tokenized, None))
                writing.append(writer.submit(write, encode(slices), work))
                wait(writing, WRITE_SECONDS)
                while writing and (writing[0].done() or len(writing) > AHEAD):
                    yield from writing.popleft().result()
            while writing:
                yield from writing.popleft().result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
            writer.shutdown(wait=False, cancel_futures=True)
            wait(writing, STOP_SECONDS)

    def call(self, pool: EncoderPool, function: Callable[..., Result], *arguments: object) -> Result:
        """Calls the function."""
        del pool
        return function(*arguments)

    def shuffle(self, shuffle: Shuffle) -> pa.Table:
        """Runs the tasks once for every few partitions, which it holds in memory."""
        found = []
        for first in range(0, shuffle.partitions, PARTITIONS_AT_ONCE):
            numbers = pa.array(range(first, min(first + PARTITIONS_AT_ONCE, shuffle.partitions)), pa.int32())
            tables = (table for task in shuffle.tasks for table in shuffle.read(task))
            held = pa.concat_tables(table.filter(pc.is_in(table[PARTITION], numbers)) for table in tables)
            for number in numbers:
                if (rows := held.filter(pc.equal(held[PARTITION], number))).num_rows:
                    found.append(shuffle.write(rows.combine_chunks()))
        return pa.concat_tables(found) if found else shuffle.write(held)

    def remove_everywhere(self, folder: str) -> None:
        """Deletes a folder."""
        shutil.rmtree(folder, ignore_errors=True)


class _Board(Board):
    def __init__(self) -> None:
        self._state, self._lock = BoardState(), threading.Lock()

    def _ask(self, default: Any, method: str, *arguments: Any, timeout: float = ANSWER_SECONDS) -> Any:
        del default, timeout
        with self._lock:
            return getattr(self._state, method)(*arguments)

    def _send(self, method: str, *arguments: Any) -> None:
        self._ask(None, method, *arguments)


class _NoMetrics:
    def committed(self, receipt: Receipt, progress: float) -> None:
        pass

    def failed(self) -> None:
        pass
