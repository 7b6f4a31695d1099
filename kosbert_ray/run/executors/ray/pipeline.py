"""Runs the stages on Ray Data: read and tokenize in tasks, encode in an actor pool, write in tasks.

Slices travel as rows (see ``slice_row``). If there are enough read tasks to occupy every core, each also tokenizes what it
reads, which saves Ray a task per row; otherwise the slices of one long file are tokenized in tasks of their own. The driver
receives outcomes; vectors go from the encoder's process to the writer's through shared memory.
"""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import ray

from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import DeviceBroken
from kosbert_ray.run.bounds import expected_rows
from kosbert_ray.run.executors.base import EncoderPool, Pending
from kosbert_ray.run.executors.ray.errors import error_of
from kosbert_ray.run.executors.ray.planned_reads import READ_CPUS, PlannedReads
from kosbert_ray.run.read_tasks import shared_read_tasks
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.slice_row import SliceRow, bundle, unbundle
from kosbert_ray.run.stages.encode import EncodeSlices
from kosbert_ray.run.stages.read import read_slices
from kosbert_ray.run.stages.tokenize import tokenize
from kosbert_ray.run.stages.work import Outcome, Work
from kosbert_ray.run.stages.write import write

# Ray Data fuses neighbouring stages that ask for the same resources. Then a CPU encoder would tokenize for itself.
# Different shares keep the stages apart.
TOKENIZE_CPUS = 0.75
WRITE_CPUS = 0.5
OUTCOMES = "outcomes"
# One slice is fetched while another is encoded. A GPU encodes several within the tenth of a second at which Ray polls.
TASKS_IN_FLIGHT = {"cpu": 2, "gpu": 4}
FEW = 2  # slices for each encoder: none is sent ahead, or the first encoder that is ready would take those of the others


def run(
    work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None, pending: Pending, pool: EncoderPool
) -> Generator[Outcome, None, None]:
    """Runs the open slices (see ``Executor.outcomes``). Ray Data's backpressure bounds memory: a stage waits until its
    output is consumed.
    """
    tasks = shared_read_tasks(pending, min(work.reader.limits.max_bytes, work.bundle_input_bytes))
    tokenizing = _Tokenize(work, ray.put(tokenizer), None if shared_texts is None else ray.put(shared_texts))
    together = len(tasks) >= ray.cluster_resources().get("CPU", 0)
    read = partial(_read, work, tokenizing if together else None)
    reads = PlannedReads("Slices", read, tasks, work.reader.limits.max_bytes)
    dataset = ray.data.read_datasource(
        reads, override_num_blocks=len(tasks), num_cpus=TOKENIZE_CPUS if together else READ_CPUS
    )
    stage: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    if not together:
        dataset = dataset.map_batches(_tokenize, fn_kwargs={"tokenizing": tokenizing}, num_cpus=TOKENIZE_CPUS, **stage)
    dataset = dataset.map_batches(
        EncodeSlicesActor,
        fn_constructor_kwargs={"work": work},
        compute=ray.data.ActorPoolStrategy(
            min_size=pool.minimum,
            max_size=pool.maximum,
            max_tasks_in_flight_per_actor=in_flight(pending, pool, work.reader.limits),
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        **stage,
    )
    dataset = dataset.map_batches(_write, fn_kwargs={"work": work}, num_cpus=WRITE_CPUS, **stage)
    # Without prefetching an outcome arrives at once, not together with the next one.
    batches: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        for table in batches:
            for content in table[OUTCOMES].to_pylist():
                yield from pickle.loads(content)
    except Exception as error:
        raise error_of(error) from error
    finally:
        # Ray ends the execution when its iterator is collected. An error's traceback can delay that until Ray itself shuts
        # down, and then Ray's core kills the process silently.
        batches.close()
        del batches
        gc.collect()


def in_flight(pending: Pending, pool: EncoderPool, limits: Limits) -> int:
    """Rows that are sent to an encoder before it asks for them.

    With one, Ray Data adds no encoders to the pool, so there must be few slices for those that it starts with.

    Args:
        pending: the open slices.
        pool: the encoders.
        limits: of a slice.
    """
    most_bytes = min(limits.max_bytes, limits.target_bytes or limits.max_bytes)
    slices = sum(max(1.0, item.input_bytes / most_bytes, expected_rows(item) / limits.max_rows) for item, _ in pending)
    return 1 if slices <= FEW * pool.minimum else TASKS_IN_FLIGHT["gpu" if pool.gpus else "cpu"]


@dataclass(frozen=True)
class _Tokenize:
    """Tokenizes slices in any worker."""

    work: Work
    tokenizer: ray.ObjectRef[Tokenizer]
    shared_texts: ray.ObjectRef[SharedTexts] | None

    def __call__(self, slices: list[SliceRow]) -> list[SliceRow]:
        shared_texts = _shared_texts(self.shared_texts) if self.shared_texts else None
        return tokenize(slices, self.work, _tokenizer(self.tokenizer), shared_texts)


def _read(work: Work, tokenizing: _Tokenize | None, fragments: Pending) -> Iterator[pa.Table]:
    for slices in read_slices(work, fragments):
        yield bundle(tokenizing(slices) if tokenizing else slices)


def _tokenize(row: pa.Table, tokenizing: _Tokenize) -> pa.Table:
    return bundle(tokenizing(unbundle(row)))


def _write(row: pa.Table, work: Work) -> pa.Table:
    return pa.table({OUTCOMES: pa.array([pickle.dumps(write(unbundle(row), work))], pa.binary())})


@lru_cache(maxsize=1)
def _tokenizer(reference: ray.ObjectRef[Tokenizer]) -> Tokenizer:
    """Fetches the tokenizer once per worker process."""
    # Ray runs one task per core, so threads inside a task would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return ray.get(reference)


@lru_cache(maxsize=1)
def _shared_texts(reference: ray.ObjectRef[SharedTexts]) -> SharedTexts:
    return ray.get(reference)


class EncodeSlicesActor:
    """The encoder as an actor."""

    def __init__(self, work: Work) -> None:
        self._encode = EncodeSlices(work)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encodes a bundle of slices."""
        try:
            return bundle(self._encode(unbundle(row)))
        except DeviceBroken:
            os._exit(1)  # Ray starts another process, and the board counts the attempts
