"""``reuse``: takes the vectors of unchanged texts from an older output.

A shuffle sorts the hashes of the older output's texts into ``_kosbert/reuse``, from where every node copies them. They are
kept until the new output is complete, so that a resumed run does not look again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.config import TEXT_HASH, JobConfig
from kosbert_ray.errors import FingerprintMismatch, InputError, StorageError, UsageError
from kosbert_ray.job import open_output
from kosbert_ray.kept_texts import KeptTexts
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.older_vectors import FIRST, FOLDER, PLACE, PLACES, SHARD, SHARDS_FILE, OlderVectors
from kosbert_ray.run.shuffle import PARTITION, Shuffle
from kosbert_ray.run.text_hashes import HASH, HASH_TYPE, halves, hashes_of
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.table import kinds_of
from kosbert_ray.shards.ledger import JOB_FILE, Ledger
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet
from kosbert_ray.stored import stored_config
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, named

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import Executor

KEY = b"kosbert_ray.reuse"  # in the metadata of SHARDS_FILE: what the index was made of, and its files
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
        try:
            storage = open_output(config.model_copy(update={"output": place}), retry=True)
        except UsageError as error:
            raise UsageError(str(error).replace("output.path", "reuse", 1)) from error
        record = Ledger(storage).job()
        if not record:
            raise InputError(f"reuse: {storage.url()}: not an output of kosbert-ray (it has no {JOB_FILE})")
        older = stored_config(record, storage.url(JOB_FILE))
        texts = None if older.output.text_hash else KeptTexts.of(older, record["fingerprint"]["keep"])
        if texts is None and not older.output.text_hash:
            raise InputError(
                f"reuse: {storage.url()} has neither the texts (as strings) nor their hashes; an output can be reused if "
                "it keeps its texts or was made with output.text_hash=true"
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
    if DENSE not in kinds_of(fingerprint):
        raise UsageError(
            f"reuse: {storage.url()} has {named(kinds_of(fingerprint))} vectors; reuse an output of dense ones"
        )
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
    made_of = _made_of(older, shards)
    index = _Index.find(output, made_of)
    if index is None:
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
        index = _Index.of(made_of, found)
        table = pa.table({SHARD: [name for name, _ in shards], FIRST: [first for _, first in shards]})
        content = json.dumps(asdict(index)).encode()
        output.write_atomic(SHARDS_FILE, to_parquet(table.replace_schema_metadata({KEY: content})))
    files = tuple((name, digest) for name, (_, digest) in sorted(index.files.items()))
    return OlderVectors(output, older.storage, older.format, index.texts, files, index.content) if index.texts else None


def _made_of(older: OlderOutput, shards: Shards) -> str:
    content = "\n".join([older.storage.url(), older.format.column, *(name for name, _ in shards)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Index:
    """Describes an index.

    Attributes:
        made_of: digest of the older output's address and shards.
        texts: number of texts.
        content: digest of the files; names them on every node.
        files: bytes and XXH128 of each file, by name.
    """

    made_of: str
    texts: int
    content: str
    files: dict[str, tuple[int, str]]

    @staticmethod
    def of(made_of: str, written: pa.Table) -> _Index:
        """Describes files that :func:`write_places` has written."""
        files = sorted((row for row in written.to_pylist() if row["file"]), key=lambda row: row["file"])
        digest = hashlib.sha256(json.dumps([made_of, *(row["digest"] for row in files)]).encode())
        named = {row["file"]: (row["bytes"], row["digest"]) for row in files}
        return _Index(made_of, sum(row["texts"] for row in files), digest.hexdigest()[:16], named)

    @staticmethod
    def find(output: Storage, made_of: str) -> _Index | None:
        """The index that an earlier run made of the same shards; None if there is none, or files are missing or cut off."""
        try:
            metadata = pq.read_schema(pa.BufferReader(output.read(SHARDS_FILE))).metadata or {}
            found = _Index(**json.loads(metadata[KEY]))
            sizes = {name: size for name, (size, _) in found.files.items()}
        except (FileNotFoundError, pa.ArrowException, KeyError, TypeError, ValueError):
            return None
        present = {entry.name: entry.size for entry in output.list(PLACES)}
        return found if found.made_of == made_of and sizes == present else None


def clear(output: Storage) -> None:
    """Deletes the index of this or an earlier run, its completion marker first."""
    if not output.list(FOLDER):
        return
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
    """Writes hashes and places of a partition's distinct texts, ordered by hash.

    Returns:
        A row with the number of texts, and the file's name, bytes and digest; without a file, they are empty.
    """
    hashes = partition[HASH].combine_chunks()
    high, low = halves(hashes)
    order = np.lexsort((partition[PLACE].to_numpy(), low, high))
    high, low = high[order], low[order]
    firsts = order[np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])))[: len(order)]]
    if not len(firsts):
        return pa.table({"texts": [0], "file": [""], "bytes": [0], "digest": [""]})
    content = to_parquet(partition.select([HASH, PLACE]).take(pa.array(firsts)))
    name = f"{PLACES}/{partition[PARTITION][0].as_py():05d}.parquet"
    storage.write_atomic(name, content)
    digest = xxhash.xxh3_128_hexdigest(content)
    return pa.table({"texts": [len(firsts)], "file": [name], "bytes": [content.size], "digest": [digest]})
