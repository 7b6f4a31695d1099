"""``dedup: corpus``: finds texts that occur in several slices and embeds each of them once.

A shuffle sends each slice's distinct texts to the partition of their hash. Texts that arrive there more than once are
written to ``_kosbert/dedup/texts`` and embedded by an ordinary job into ``_kosbert/dedup/vectors``, where the
slices look them up. Everything is kept until the output is complete, so that a resumed run recomputes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.options import InputOptions
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import REASON, TEXT
from kosbert_ray.encoder.options import ChunkOptions
from kosbert_ray.errors import InputChanged, InputError, JobFailed, StorageError
from kosbert_ray.run.read_tasks import shared_read_tasks
from kosbert_ray.run.shared_vectors import SharedTexts, SharedVectors
from kosbert_ray.run.shuffle import PARTITION, Shuffle
from kosbert_ray.run.text_hashes import HASH, halves, hashes_of
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.options import OutputOptions
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import Executor, Pending

FOLDER = "_kosbert/dedup"
TEXTS = f"{FOLDER}/texts"
VECTORS = f"{FOLDER}/vectors"
FRAGMENTS_FILE = f"{FOLDER}/fragments.parquet"  # written last: the fragments that the shuffle has seen
PARTITION_BYTES = 64 * 2**20  # of stored input; the texts of a partition are sorted in memory
MAX_PARTITIONS = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """Texts that occur in several slices, and their vectors."""

    texts: SharedTexts
    vectors: SharedVectors


def distinct_texts(reader: FragmentReader, partitions: int, pending: Pending) -> Iterator[pa.Table]:
    """Yields a table of distinct texts, their hashes and partitions for each slice of these fragments.

    Skips what cannot be read; the run itself reports it.
    """
    schema = pa.schema([(PARTITION, pa.int32()), (HASH, pa.binary(16)), (TEXT, pa.large_string())])
    yield schema.empty_table()
    for fragment, _ in pending:
        try:
            for _, table in reader.slices(fragment):
                texts = pc.unique(table.filter(table[REASON].is_null())[TEXT].combine_chunks())
                hashes = hashes_of(texts)
                partition = (halves(hashes)[0] % np.uint64(partitions)).astype(np.int32)
                yield pa.table([pa.array(partition), hashes, texts], schema=schema)
        except (InputError, InputChanged, StorageError):
            continue


def write_shared(partition: pa.Table, storage: Storage) -> pa.Table:
    """Writes the texts that occur more than once in a partition, ordered by hash; returns sums about them."""
    hashes = partition[HASH].combine_chunks()
    order = pc.sort_indices(hashes)
    high, low = halves(hashes.take(order))
    starts = np.flatnonzero(np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1]))))
    counts = np.diff(np.append(starts, len(high)))
    several = counts > 1
    chosen = order.to_numpy()[starts[several]]
    texts = partition[TEXT].combine_chunks().take(pa.array(chosen))
    if len(texts):
        content = to_parquet(pa.table({TEXT: texts, HASH: hashes.take(pa.array(chosen))}))
        storage.write_atomic(f"{TEXTS}/{partition[PARTITION][0].as_py():05d}.parquet", content)
    sizes = pc.binary_length(texts).to_numpy().astype(np.int64)
    spared = int((sizes * (counts[several] - 1)).sum())
    all_bytes = pc.sum(pc.binary_length(partition[TEXT])).as_py() or 0
    return pa.table(
        {"shared": [len(texts)], "times": [int(counts[several].sum())], "spared": [spared], "bytes": [all_bytes]}
    )


def prepare(
    config: JobConfig,
    reader: FragmentReader,
    pending: Pending,
    output: Storage,
    executor: Executor,
    embed: Callable[[JobConfig], Any],
) -> Shared | None:
    """Finds and embeds the texts that pending slices share, reusing the work of an earlier run.

    Args:
        config: the job.
        reader: reads its fragments.
        pending: fragments with open slices.
        output: the job's output.
        executor: runs the shuffle.
        embed: runs a job.

    Returns:
        The texts and their vectors; None if no text occurs in two slices.

    Raises:
        KosbertError: the same errors as a run.
    """
    if not {fragment.id for fragment, _ in pending} <= _seen(output):
        clear(output)
        _find(reader, pending, output, executor)
    if not output.list(TEXTS):
        return None
    inner = config.model_copy(
        update={
            "input": InputOptions(path=output.url(TEXTS), text=TEXT, keep=(HASH,)),
            "output": OutputOptions(path=output.url(VECTORS), removed_inputs="delete", text=False, rejected_text=False),
            "dedup": "slice",
            "limit": None,
            "max_minutes": None,  # the slices need all of these vectors
            "executor": executor.name,
            # Chunks are looked up among texts that are embedded as a whole elsewhere.
            "long_text": "truncate" if config.chunked else config.long_text,
            "chunk": ChunkOptions() if config.chunked else config.chunk,
            "on_finish": "",
            "on_bad_row": "reject",
            "max_rejected": 1.0,  # a bad text is rejected in its own slice, with its address
        }
    )
    log.info("dedup: embedding the texts that occur in several slices")
    embed(inner)
    return _shared(Storage(output.url(VECTORS), output.options))


def _seen(output: Storage) -> set[str]:
    """Ids of the fragments that a finished shuffle has seen."""
    try:
        return set(pq.read_table(io.BytesIO(output.read(FRAGMENTS_FILE)))["fragment"].to_pylist())
    except (FileNotFoundError, pa.ArrowException):
        return set()


def clear(output: Storage) -> None:
    """Deletes all files of the shuffle, its completion marker first."""
    output.delete([FRAGMENTS_FILE])
    output.delete_folder(FOLDER)


def _find(reader: FragmentReader, pending: Pending, output: Storage, executor: Executor) -> None:
    size = sum(fragment.input_bytes for fragment, _ in pending)
    partitions = min(MAX_PARTITIONS, 1 + size // PARTITION_BYTES)
    log.info(f"dedup: looking for texts that occur in several slices ({partitions:,} partitions)")
    most_bytes = reader.limits.max_bytes
    found = executor.shuffle(
        Shuffle(
            name="DistinctTexts",
            tasks=shared_read_tasks(pending, most_bytes),
            read=partial(distinct_texts, reader, partitions),
            task_bytes=most_bytes,
            partitions=partitions,
            write=partial(write_shared, storage=output),
        )
    )
    sums = {name: pc.sum(found[name]).as_py() or 0 for name in ("shared", "times", "spared", "bytes")}
    log.info(
        f"dedup: {plural(sums['shared'], 'text', 'occur')} in several slices, {sums['times']:,} times in "
        "total; embedding each once "
        f"saves {sums['spared'] / max(1, sums['bytes']):.1%} of the text"
    )
    output.write_atomic(FRAGMENTS_FILE, to_parquet(pa.table({"fragment": [fragment.id for fragment, _ in pending]})))


def _shared(storage: Storage) -> Shared | None:
    """Reads the texts and vectors of the complete dedup output."""
    ledger = Ledger(storage)
    receipts = [receipt for receipt in ledger.manifest() or [] if receipt.shard]
    if not receipts:
        return None
    hashes = []
    for receipt in receipts:
        with storage.open(receipt.shard) as handle:
            hashes.append(pq.read_table(handle, columns=[HASH])[HASH].combine_chunks())
    texts = pa.concat_arrays(hashes)
    if len(texts) != sum(receipt.rows for receipt in receipts):
        raise JobFailed(f"{storage.url()}: its shards do not match its manifest; delete {FOLDER} and run again")
    job = ledger.job()
    key = hashlib.sha256(json.dumps([job["sha256"], *(receipt.embedding_xxh128 for receipt in receipts)]).encode())
    vectors = SharedVectors(
        storage,
        tuple(receipt.shard for receipt in receipts),
        EmbeddingFormat.of(job["fingerprint"]),
        len(texts),
        key.hexdigest()[:16],
    )
    return Shared(SharedTexts.of(texts), vectors)
