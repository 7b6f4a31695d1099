"""The stages on Ray Data: the plan as a datasource, tasks and an actor pool, and outcomes back to the driver.

A slice travels as one row, small ones together as one (see ``rows``). What comes back to the driver is one outcome per
slice; the vectors go from the encoder's process to the writer's through shared memory.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from kosbert_ray import errors
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import JobFailed, KosbertError, first_line
from kosbert_ray.run.ray_session import EncoderPool
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.stages.encode import EncodeSlices
from kosbert_ray.run.stages.read import read_slices
from kosbert_ray.run.stages.tokenize import tokenize
from kosbert_ray.run.stages.work import MAX_BUNDLED, OUTCOMES, Outcome, Work
from kosbert_ray.run.stages.write import write

# Ray Data fuses neighbouring stages that ask for the same resources: then one long file would be tokenised in the task that
# reads it, and a CPU encoder would tokenise for itself. Shares of their own keep the stages apart.
READ_CPUS = 0.5
TOKENIZE_CPUS = 0.75
WRITE_CPUS = 0.5
# One slice is fetched while another is encoded; a GPU does more of them in the tenth of a second that Ray takes to notice.
TASKS_IN_FLIGHT = {"cpu": 2, "gpu": 4}
MAX_READ_TASKS = 4096  # the driver puts each into the object store before the first runs

Pending = list[tuple[Fragment, frozenset[int]]]


def shared_read_tasks(fragments: Pending, most_bytes: int) -> list[Pending]:
    """Cuts a plan into read tasks: neighbours share one up to ``most_bytes`` of input, or more if there are too many."""
    total = sum(fragment.input_bytes for fragment, _ in fragments)
    most_bytes = max(most_bytes, total // MAX_READ_TASKS)
    most = max(MAX_BUNDLED, -(-len(fragments) // MAX_READ_TASKS))
    tasks: list[Pending] = []
    size = 0
    for item in fragments:
        if not tasks or len(tasks[-1]) == most or size + item[0].input_bytes > most_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(item)
        size += item[0].input_bytes
    return tasks


class PlannedReads(Datasource):
    """Ray Data's view of the plan.

    Args:
        name: what Ray calls the stage.
        read: gives the tables of one read task.
        tasks: what each read task is given.
        size: bytes that one gives, about.
    """

    def __init__(self, name: str, read: Callable[[Pending], Iterator[pa.Table]], tasks: list[Pending], size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self._read, self._tasks, self._size = name, read, tasks, size

    def get_name(self) -> str:
        """What Ray calls the stage."""
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before the files are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The plan's, however many Ray would like."""
        del parallelism, per_task_row_limit, data_context
        return [
            ReadTask(
                partial(self._read, task),
                BlockMetadata(num_rows=None, size_bytes=self._size, input_files=(task[0][0].file.name,), exec_stats=None),
            )
            for task in self._tasks
        ]


def run(
    work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None, fragments: Pending, pool: EncoderPool
) -> Generator[Outcome, None, None]:
    """Runs the fragments' remaining slices; yields each one's outcome as soon as it is known.

    Memory is bounded by Ray Data's backpressure: a stage waits while what it made is not taken.

    Args:
        work: what to do.
        tokenizer: the model's.
        shared_texts: texts whose vectors are ``work.shared``.
        fragments: what to do it on, each with the indices of its slices that are committed already.
        pool: how many encoders, of which size.

    Raises:
        KosbertError: whatever a stage raised.
    """
    tasks = shared_read_tasks(fragments, min(work.reader.limits.max_bytes, work.bundle_input_bytes))
    reads = PlannedReads("Slices", partial(read_slices, work), tasks, work.reader.limits.max_bytes)
    dataset = ray.data.read_datasource(reads, override_num_blocks=len(tasks), num_cpus=READ_CPUS)
    stage: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    shared = None if shared_texts is None else ray.put(shared_texts)
    dataset = dataset.map_batches(
        tokenize,
        fn_kwargs={"work": work, "tokenizer": ray.put(tokenizer), "shared_texts": shared},
        num_cpus=TOKENIZE_CPUS,
        **stage,
    )
    dataset = dataset.map_batches(
        EncodeSlices,
        fn_constructor_kwargs={"work": work},
        compute=ray.data.ActorPoolStrategy(
            min_size=pool.minimum,
            max_size=pool.maximum,
            max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT["gpu" if pool.gpus else "cpu"],
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        **stage,
    )
    dataset = dataset.map_batches(write, fn_kwargs={"work": work}, num_cpus=WRITE_CPUS, **stage)
    # No prefetching: a receipt is to be seen when it is there, not when the next one is.
    batches: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        for table in batches:
            for content in table[OUTCOMES].to_pylist():
                yield from Outcome.parse(content)
    except Exception as error:
        raise error_of(error) from error
    finally:
        # Ray ends the execution when its iterator is collected, which an error's traceback can put off until Ray itself
        # is shut down; then Ray's core ends the process, without a word.
        batches.close()
        del batches
        gc.collect()


OWN_ERROR = re.compile(r"^(?:\S+: )?kosbert_ray\.errors\.(\w+): (.+)$", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _own_error(text: str) -> KosbertError | None:
    """Finds the last KosbertError in the text of a traceback."""
    found = OWN_ERROR.findall(ANSI.sub("", text))
    if not found:
        return None
    name, line = found[-1]
    kind = getattr(errors, name, JobFailed)
    return kind(line.strip()) if issubclass(kind, KosbertError) else None


def error_of(error: Exception) -> KosbertError:
    """The error of ours that Ray wrapped, or one that says in a line what broke."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        # Ray's wrapper poses as an instance of what it wraps, with a traceback for its text; and to the text of what it
        # wraps it adds advice of its own.
        if isinstance(link, KosbertError) and not isinstance(link, RayError):
            return type(link)(first_line(link))
        chain.append(link)
        link = getattr(link, "cause", None) or link.__cause__
    # When an actor dies, its own error is only in the text of Ray's.
    for link in chain:
        if own := _own_error(str(link)):
            return own
    causes = [link for link in chain if not isinstance(link, RayError | SystemException)] or chain
    text = next((line for line in str(causes[0]).splitlines() if line.strip()), "")
    return JobFailed(
        f"the run broke ({type(causes[0]).__name__}: {text.strip()}); what is committed stays, run the same command again"
    )
