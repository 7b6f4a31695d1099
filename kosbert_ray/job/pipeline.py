"""The stages on Ray Data: read → tokenize → encode → write, each slice one row from end to end.

Ray Data merges and splits blocks as it likes but never splits a row, so a slice travels as a single row whose columns are
nested lists: texts, token ids, vectors. Nesting and unnesting copy nothing. What comes back to the driver is one receipt
per slice; the vectors go from the encoder's process to the writer's through shared memory.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from kosbert_ray.corpus.plan import Fragment, Slice
from kosbert_ray.corpus.rows import POSITION, REASON, TEXT
from kosbert_ray.corpus.slices import FragmentReader
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.encoder.source import ModelSource, fetch_model
from kosbert_ray.encoder.spec import ModelSpec, SpecOptions, read_spec, sha256
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import JobFailed, KosbertError, ModelError
from kosbert_ray.job.cluster import EncoderPool
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_SCHEMA, EmbeddingFormat, write_rejected, write_shard
from kosbert_ray.storage import Storage

TOKENS = ("ids", "lengths", "rows", "dropped")
KEEP = "keep."
VECTORS = "vectors"
NOTES = "notes"  # what the stages say of the slice so far: a JSON object
# Ray Data fuses neighbouring stages that ask for the same resources: then one long file would be tokenised in the task that
# reads it, and a CPU encoder would tokenise for itself. Shares of their own keep the stages apart.
READ_CPUS = 0.5
TOKENIZE_CPUS = 0.75
WRITE_CPUS = 0.5
TASKS_IN_FLIGHT = 2  # a slice is fetched while another is encoded


@dataclass(frozen=True)
class ModelAsk:
    """The model and the options under which every worker reads its folder."""

    source: ModelSource
    options: SpecOptions

    def spec(self) -> ModelSpec:
        """What this machine's copy of the folder says."""
        return read_spec(fetch_model(self.source), self.options)


@dataclass(frozen=True)
class Work:
    """All that the stages need to know; small, and the same for every slice."""

    reader: FragmentReader
    model: ModelAsk
    weights_sha256: str
    encoder: EncoderOptions
    output: Storage
    format: EmbeddingFormat
    fingerprint: str
    driver_host: str


def nest(columns: dict[str, pa.Array]) -> pa.Table:
    """Arrays of any lengths as the one row of a table: a ``large_list`` each. Nothing is copied."""
    return pa.table(
        {
            name: pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
            for name, array in columns.items()
        }
    )


def unnest(row: pa.Table, name: str) -> pa.Array:
    """The array that :func:`nest` put into a column of a one-row table, without a copy."""
    return row.column(name).chunk(0).flatten()


def _notes(row: pa.Table) -> dict[str, Any]:
    return dict(json.loads(row.column(NOTES)[0].as_py()))


def _with_notes(table: pa.Table, notes: dict[str, Any]) -> pa.Table:
    return table.append_column(NOTES, pa.array([json.dumps(notes)], pa.large_string()))


# -- read ----------------------------------------------------------------------------------------------------------


class SliceDatasource(Datasource):
    """Ray Data's view of the plan: one read task a fragment, which yields one row a slice that is not yet committed."""

    def __init__(self, work: Work, fragments: list[tuple[Fragment, frozenset[int]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._work = work
        self._fragments = fragments

    def get_name(self) -> str:
        """What Ray calls the stage."""
        return "Slices"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before the files are read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a fragment, however many Ray would like: the cut is the plan's."""
        del parallelism, per_task_row_limit, data_context
        size = self._work.reader.limits.max_bytes
        return [
            ReadTask(
                partial(read_slices, self._work, fragment, done),
                BlockMetadata(num_rows=None, size_bytes=size, input_files=(fragment.file.name,), exec_stats=None),
            )
            for fragment, done in self._fragments
        ]


def read_slices(work: Work, fragment: Fragment, done: frozenset[int]) -> Iterator[Block]:
    """The rows of one fragment as one-row tables: texts, kept columns, rejected rows, and what they are a slice of."""
    for piece, table in work.reader.slices(fragment, done):
        yield slice_row(work, piece, table)


def slice_row(work: Work, piece: Slice, table: pa.Table) -> pa.Table:
    """A slice as the one row that travels."""
    fragment = piece.fragment
    good = pc.is_null(table[REASON])
    bad, table = table.filter(pc.invert(good)), table.filter(good)
    notes = {
        "shard": piece.shard_name(work.fingerprint) if piece.rows else "",
        "file": fragment.file.name,
        "version": fragment.file.version,
        "fragment": fragment.id,
        "fragment_index": fragment.index,
        "slice_index": piece.index,
        "last": piece.last,
        "rows": table.num_rows,
        "rejected": bad.num_rows,
        "input_bytes": piece.input_bytes,
    }
    columns = {TEXT: table[TEXT].combine_chunks()}
    columns |= {KEEP + name: table[name].combine_chunks() for name in work.reader.columns.keep.names}
    by_byte = fragment.file.format != "parquet" and not fragment.file.compression
    rejected = _rejected(fragment.file.name, bad, by_byte)
    columns |= {f"rejected.{name}": rejected[name].combine_chunks() for name in rejected.column_names}
    return _with_notes(nest(columns), notes)


def _rejected(file: str, bad: pa.Table, by_byte: bool) -> pa.Table:
    if not bad.num_rows:
        return REJECTED_SCHEMA.empty_table()
    nothing = pa.nulls(bad.num_rows, pa.int64())
    return pa.table(
        [
            pa.array([file] * bad.num_rows),
            nothing if by_byte else bad[POSITION],
            bad[POSITION] if by_byte else nothing,
            bad[REASON],
            bad[TEXT],
        ],
        schema=REJECTED_SCHEMA,
    )


# -- tokenize ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tokenizer(reference: ray.ObjectRef[Tokenizer]) -> Tokenizer:
    """One tokenizer a worker process, whatever number of slices it sees."""
    # Ray runs one task a core: threads inside a task would only fight over them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return ray.get(reference)


def tokenize(row: pa.Table, tokenizer: ray.ObjectRef[Tokenizer]) -> pa.Table:
    """Texts → token ids, each distinct text once; the texts stay behind."""
    started = time.perf_counter()
    tokens = _tokenizer(tokenizer)(unnest(row, TEXT))
    notes = _notes(row) | {
        "distinct": len(tokens.lengths),
        "tokens": int(tokens.lengths[tokens.rows].sum()),
        "encoded_tokens": int(tokens.lengths.sum()),
        "truncated": int((tokens.dropped[tokens.rows] > 0).sum()),
        "dropped_tokens": int(tokens.dropped[tokens.rows].sum()),
        "tokenize_seconds": time.perf_counter() - started,
    }
    packed = nest({name: pa.array(getattr(tokens, name)) for name in TOKENS})
    return _with_notes(_replace(row, (TEXT, NOTES), packed), notes)


def _replace(row: pa.Table, drop: tuple[str, ...], add: pa.Table) -> pa.Table:
    row = row.drop_columns(list(drop))
    for name in add.column_names:
        row = row.append_column(name, add.column(name))
    return row


# -- encode --------------------------------------------------------------------------------------------------------


class EncodeSlices:
    """The actor: one loaded model, one slice after another."""

    def __init__(self, work: Work) -> None:
        from kosbert_ray.encoder.model import Encoder

        spec = work.model.spec()
        self.node = socket.gethostname()
        if self.node != work.driver_host and sha256(spec.folder, spec.weight_files) != work.weights_sha256:
            raise ModelError(f"{work.model.source.name}: node {self.node} has other weights than the driver")
        self.encoder = Encoder(spec, work.encoder)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Token ids → vectors, float32 ``[n, dimension]`` as one flat list."""
        started = time.perf_counter()
        tokens = Tokens(*(unnest(row, name).to_numpy() for name in TOKENS))
        vectors = self.encoder.encode_tokens(tokens)
        notes = _notes(row) | {
            "precision": self.encoder.precision,
            "attention": self.encoder.attention,
            "device": self.encoder.device,
            "notices": self.encoder.notices,
            "node": self.node,
            "encode_seconds": time.perf_counter() - started,
        }
        return _with_notes(_replace(row, (*TOKENS, NOTES), nest({VECTORS: pa.array(vectors.reshape(-1))})), notes)


# -- write ---------------------------------------------------------------------------------------------------------


def write(row: pa.Table, work: Work) -> pa.Table:
    """Commits the slice and gives its receipt: first the rejected rows, then the shard, whose presence is the commit."""
    started = time.perf_counter()
    notes = _notes(row)
    notices = notes.pop("notices")
    receipt = Receipt(**notes, output_bytes=0)
    if receipt.rejected:
        rejected = {name: unnest(row, f"rejected.{name}") for name in REJECTED_SCHEMA.names}
        write_rejected(work.output, receipt.shard, pa.table(rejected))
    if receipt.shard:
        keep = {field.name: unnest(row, KEEP + field.name) for field in work.reader.columns.keep}
        vectors = unnest(row, VECTORS).to_numpy().reshape(-1, work.format.dimension)
        footer = receipt.footer() | {"fingerprint": work.fingerprint}
        size = write_shard(work.output, receipt.shard, keep, vectors, work.format, footer)
        receipt = replace(receipt, output_bytes=size)
    receipt = replace(receipt, write_seconds=time.perf_counter() - started)
    return pa.table({"receipt": [json.dumps(asdict(receipt))], "notices": [json.dumps(notices)]})


# -- all of it -----------------------------------------------------------------------------------------------------


def run(
    work: Work, tokenizer: Tokenizer, fragments: list[tuple[Fragment, frozenset[int]]], pool: EncoderPool
) -> Iterator[tuple[Receipt, list[str]]]:
    """Runs the fragments' remaining slices; yields a receipt and the encoder's notices as each slice is committed.

    Memory is bounded by Ray Data's backpressure: a stage waits while what it made is not taken.

    Args:
        work: what to do.
        tokenizer: the model's.
        fragments: what to do it on, each with the indices of its slices that are committed already.
        pool: how many encoders, of which size.

    Raises:
        KosbertError: whatever a stage raised.
    """
    dataset = ray.data.read_datasource(
        SliceDatasource(work, fragments), override_num_blocks=len(fragments), num_cpus=READ_CPUS
    )
    stage: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    dataset = dataset.map_batches(tokenize, fn_kwargs={"tokenizer": ray.put(tokenizer)}, num_cpus=TOKENIZE_CPUS, **stage)
    dataset = dataset.map_batches(
        EncodeSlices,
        fn_constructor_kwargs={"work": work},
        compute=ray.data.ActorPoolStrategy(
            min_size=pool.minimum, max_size=pool.maximum, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        **stage,
    )
    dataset = dataset.map_batches(write, fn_kwargs={"work": work}, num_cpus=WRITE_CPUS, **stage)
    try:
        # No prefetching: a receipt is to be seen when it is there, not when the next one is.
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                yield Receipt(**json.loads(row["receipt"])), json.loads(row["notices"])
    except Exception as error:
        raise _ours(error) from error


def _ours(error: Exception) -> KosbertError:
    """The error of ours that Ray wrapped, or one that says in a line what broke."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        # Ray's wrapper poses as an instance of what it wraps, with a traceback for its text; and to the text of what it
        # wraps it adds advice of its own.
        if isinstance(link, KosbertError) and not isinstance(link, RayError):
            return type(link)(str(link).splitlines()[0])
        chain.append(link)
        link = getattr(link, "cause", None) or link.__cause__
    causes = [link for link in chain if not isinstance(link, RayError | SystemException)] or chain
    text = next((line for line in str(causes[0]).splitlines() if line.strip()), "")
    return JobFailed(
        f"the run broke ({type(causes[0]).__name__}: {text.strip()}); what is committed stays, run the same command again"
    )
