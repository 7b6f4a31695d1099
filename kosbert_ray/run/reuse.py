"""``reuse``: takes the vectors of unchanged texts from an older output.

A shuffle sorts the hashes of the older output's texts into ``_kosbert/reuse``, from where every node copies them. They are
kept until the new output is complete, so that a resumed run does not look again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosbert_ray.config import TEXT_HASH, JobConfig
from kosbert_ray.errors import FingerprintMismatch, InputError, StorageError
from kosbert_ray.job import open_output
from kosbert_ray.kept_texts import KeptTexts
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.older_vectors import FIRST, FOLDER, PLACE, PLACES, SHARD, SHARDS_FILE, OlderVectors
from kosbert_ray.run.shuffle import PARTITION, Shuffle
from kosbert_ray.run.text_hashes import HASH, HASH_TYPE, halves, hashes_of
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet
from kosbert_ray.stored import stored_config
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import Executor

KEY = b"kosbert_ray.reuse"  # in the metadata of SHARDS_FILE: what the index was made of
PARTITION_ROWS = 2**21  # 48 MiB of hashes and places, which are sorted in memory
TASK_SHARDS = 16  # that one task reads
# The fields of a fingerprint that decide the vector of a given text.
OF_VECTORS = (
    "weights",
    "tokenizer",
    "pooling",
    "head",
    "max_seq_length",
    "do_lower_case",
    "prompt",
    "long_text",
    "precision",
    "dimension",
)

log = logging.getLogger(__name__)

Shards = Sequence[tuple[str, int]]  # names, each with the place of its first row


@dataclass(frozen=True)
class OlderOutput:
    """An older output whose vectors may be reused.

    Attributes:
        storage: the folder.
        fingerprint: the fingerprint in its job.json.
        format: how the vectors to reuse are stored.
        texts: reads its texts; None if it has their hashes.
    """

    storage: Storage
    fingerprint: Mapping[str, Any]
    format: EmbeddingFormat
    texts: KeptTexts | None

    @staticmethod
    def open(config: JobConfig) -> OlderOutput:
        """Opens ``config.reuse``.

        Raises:
            InputError: it is not an output, or has neither texts nor hashes, or its vectors have another number type.
            StorageError: the store cannot be accessed.
        """
        place = config.output.model_copy(update={"path": config.reuse})
        storage = open_output(config.model_copy(update={"output": place}), retry=True)
        record = Ledger(storage).job()
        if not record:
            raise InputError(f"reuse: {storage.url()}: not an output of kosbert-ray (it has no {JOB_FILE})")
        older = stored_config(record, storage.url(JOB_FILE))
        texts = None if older.output.text_hash else KeptTexts.of(older)
        if texts is None and not older.output.text_hash:
            raise InputError(
                f"reuse: {storage.url()} has neither the texts nor their hashes; an output can be reused if it keeps its "
                "texts or was made with output.text_hash=true"
            )
        fingerprint = record["fingerprint"]
        return OlderOutput(storage, fingerprint, _format(storage, fingerprint, config.output.dtype), texts)

    def require_same(self, fingerprint: Fingerprint, model: PreparedModel) -> None:
        """Checks that both jobs give a text the same vector.

        Args:
            fingerprint: the new job's.
            model: its model.

        Raises:
            FingerprintMismatch: they do not; the message names the options that differ.
        """
        found = fingerprint.differences(self.fingerprint, model.same_weights(self.fingerprint))
        found = [difference for difference in found if difference.field in OF_VECTORS]
        if found:
            raise FingerprintMismatch(
                f"reuse: {self.storage.url()} has other vectors: {'; '.join(map(str, found))}; use the same options, or "
                "leave out --reuse"
            )

    def shards(self) -> list[tuple[str, int]]:
        """The shards in the output, each with the place of its first row; and the place after the last row."""
        receipts = sorted(Ledger(self.storage).held(), key=lambda receipt: receipt.shard)
        rows = [receipt.shard_rows(self.format.nullable) for receipt in receipts]
        firsts = np.cumsum([0, *rows]).tolist()
        return [*zip([receipt.shard for receipt in receipts], firsts, strict=False), ("", firsts[-1])]


def _format(storage: Storage, fingerprint: Mapping[str, Any], dtypes: Sequence[str]) -> EmbeddingFormat:
    """The vectors from which the new ones can be made without loss."""
    formats = {item.dtype: item for item in EmbeddingFormat.all_of(fingerprint)}
    if "float32" in formats:
        return formats["float32"]
    if len(dtypes) == 1 and (found := formats.get(dtypes[0])) and not found.codec.needs_ranges:
        return found
    raise InputError(
        f"reuse: {storage.url()} has {' and '.join(formats)} vectors, from which {' and '.join(dtypes)} vectors cannot be "
        "made; reuse an output with float32 vectors"
    )


def prepare(older: OlderOutput, output: Storage, executor: Executor) -> OlderVectors | None:
    """Makes the index of an older output's texts, or finds the one that an earlier run of this job made.

    Args:
        older: the older output.
        output: the new output.
        executor: runs the shuffle.

    Returns:
        The vectors; None if the older output is empty.

    Raises:
        KosbertError: the same errors as a run.
    """
    *shards, (_, rows) = older.shards()
    if not rows:
        return None
    key = _key(older, shards)
    texts = _texts(output, key)
    if texts is None:
        clear(output)
        partitions = 1 + rows // PARTITION_ROWS
        log.info(f"reuse: looking for the texts of {older.storage.url()} ({plural(rows, 'row')})")
        found = executor.shuffle(
            Shuffle(
                name="OlderTexts",
                tasks=[shards[first : first + TASK_SHARDS] for first in range(0, len(shards), TASK_SHARDS)],
                read=partial(hashed_rows, older, partitions),
                task_bytes=PARTITION_ROWS,
                partitions=partitions,
                write=partial(write_places, storage=output),
            )
        )
        texts = pc.sum(found["texts"]).as_py() or 0
        table = pa.table({SHARD: [name for name, _ in shards], FIRST: [first for _, first in shards]})
        output.write_atomic(SHARDS_FILE, to_parquet(table.replace_schema_metadata({KEY: f"{key} {texts}"})))
    return OlderVectors(output, older.storage, older.format, texts, key) if texts else None


def _key(older: OlderOutput, shards: Shards) -> str:
    content = "\n".join([older.storage.url(), older.format.column, *(name for name, _ in shards)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _texts(output: Storage, key: str) -> int | None:
    """Number of texts in the index that an earlier run made; None if there is none of these shards."""
    try:
        metadata = pq.read_schema(pa.BufferReader(output.read(SHARDS_FILE))).metadata or {}
    except (FileNotFoundError, pa.ArrowException):
        return None
    made_of, _, texts = metadata.get(KEY, b"").decode().partition(" ")
    return int(texts) if made_of == key else None


def clear(output: Storage) -> None:
    """Deletes the index, its completion marker first."""
    output.delete([SHARDS_FILE])
    output.delete_folder(FOLDER)


def hashed_rows(older: OlderOutput, partitions: int, shards: Shards) -> Iterator[pa.Table]:
    """Yields hashes, places and partitions of the rows of shards. Skips shards that cannot be read."""
    schema = pa.schema([(PARTITION, pa.int32()), (HASH, HASH_TYPE), (PLACE, pa.int64())])
    yield schema.empty_table()
    columns = [TEXT_HASH] if older.texts is None else [*older.texts.columns]
    if older.format.nullable:  # a rejected row may have a text, but has no vector
        columns.append(older.format.column)
    for name, first in shards:
        try:
            with open_shard(older.storage, name) as file:
                table = file.read(columns)
        except StorageError as error:
            log.warning(f"{error}; its texts are not reused")
            continue
        hashes = table[TEXT_HASH].combine_chunks() if older.texts is None else hashes_of(older.texts.read(table))
        usable = hashes.is_valid()
        if older.format.nullable:
            usable = pc.and_(usable, table[older.format.column].combine_chunks().is_valid())
        hashes, places = hashes.filter(usable), pa.array(np.arange(first, first + table.num_rows)).filter(usable)
        # Partitions are ranges of hashes, so their files in order are one sorted list.
        partition = ((halves(hashes)[0] >> np.uint64(32)) * np.uint64(partitions)) >> np.uint64(32)
        yield pa.table([pa.array(partition.astype(np.int32)), hashes, places], schema=schema)


def write_places(partition: pa.Table, storage: Storage) -> pa.Table:
    """Writes hashes and places of a partition's distinct texts, ordered by hash; returns their number."""
    hashes = partition[HASH].combine_chunks()
    high, low = halves(hashes)
    order = np.lexsort((partition[PLACE].to_numpy(), low, high))
    high, low = high[order], low[order]
    firsts = order[np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])))[: len(order)]]
    if len(firsts):
        content = partition.select([HASH, PLACE]).take(pa.array(firsts))
        storage.write_atomic(f"{PLACES}/{partition[PARTITION][0].as_py():05d}.parquet", to_parquet(content))
    return pa.table({"texts": [len(firsts)]})
