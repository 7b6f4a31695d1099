"""Is a shard what it says it is? Everything that can be told from the file itself, its receipt and its job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_FOLDER, VECTORS_KEY, checksum, described, footer_of
from kosbert_ray.storage import Storage

BATCH_ROWS = 4096
PARQUET_TYPES = {"<element: ": "<item: ", "timestamp[s": "timestamp[ms", "date64[ms]": "timestamp[ms]"}


@dataclass(frozen=True)
class Promise:
    """What a job says of all its shards.

    Attributes:
        fingerprint: the job's, as a digest.
        formats: how vectors are stored, column by column.
        keep: ``name: type`` of the columns carried through.
        normalized: whether vectors have length 1.
    """

    fingerprint: str
    formats: tuple[EmbeddingFormat, ...]
    keep: tuple[str, ...]
    normalized: bool

    @staticmethod
    def of(job: Mapping[str, Any]) -> Promise:
        """From the content of job.json; raises KeyError if it is not one."""
        said = job["fingerprint"]
        return Promise(
            job["sha256"], EmbeddingFormat.all_of(said), tuple(said["keep"]), list(said["head"])[-1:] == ["Normalize"]
        )


@dataclass(frozen=True)
class ShardCheck:
    """What was found: the shard's own account of itself (None if it has none), and what is wrong with it.

    ``of_this_job``: whether its footer names the job, be the rest broken.
    """

    name: str
    size: int
    receipt: Receipt | None
    problems: tuple[str, ...] = field(default=())
    of_this_job: bool = False


def check_shard(storage: Storage, name: str, promise: Promise, receipt: Receipt | None) -> ShardCheck:
    """Reads a whole shard, checks its pages' checksums and holds it against what is said of it.

    Args:
        storage: the output directory.
        name: the shard.
        promise: what its job says.
        receipt: what the ledger says of it, if anything.
    """
    try:
        content = storage.read(name)
    except (StorageError, FileNotFoundError) as error:
        return ShardCheck(name, 0, None, (f"cannot be read ({first_line(error)})",))
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        said = footer_of(file.metadata)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return ShardCheck(name, len(content), None, (f"no whole Parquet file of ours ({first_line(error)})",))
    problems = []
    own: Receipt | None = None
    of_this_job = said.pop("fingerprint", None) == promise.fingerprint
    if not of_this_job:
        problems.append("made by another job (its fingerprint is not job.json's)")
    try:
        own = Receipt.from_footer(said, len(content))
    except TypeError as error:
        problems.append(f"its footer is not of this version ({first_line(error)})")
    else:
        if own.shard != name:
            problems.append(f"holds another shard's content, that of {own.shard}")
        if receipt and receipt.footer() != own.footer():
            fields = [key for key, value in own.footer().items() if receipt.footer().get(key) != value]
            problems.append(f"its footer is not its receipt's ({', '.join(fields)} differ)")
    if (file.metadata.metadata or {}).get(VECTORS_KEY) != described(promise.formats):
        problems.append("its footer says otherwise than job.json how vectors are stored")
    found = _columns(f"{part.name}: {part.type}" for part in file.schema_arrow)
    expected = _columns([*promise.keep, *(f"{format.column}: {format.field().type}" for format in promise.formats)])
    if found != expected:
        problems.append(f"its columns are ({', '.join(found)}) instead of ({', '.join(expected)})")
    elif own:
        try:
            problems += _check_rows(file, own, promise)
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"its pages are damaged ({first_line(error)})")
    return ShardCheck(name, len(content), own, tuple(problems), of_this_job)


def _columns(described: Iterable[str]) -> list[str]:
    """Names and types as Parquet gives them back.

    It calls "element" what Arrow calls the "item" of a list, and has neither seconds nor date64, which 0.1.0 noted.
    """
    found = []
    for column in described:
        for ours, parquets in PARQUET_TYPES.items():
            column = column.replace(ours, parquets)
        found.append(column)
    return found


def _check_rows(file: pq.ParquetFile, receipt: Receipt, promise: Promise) -> Iterable[str]:
    problems = []
    format = promise.formats[0]
    rows = receipt.rows + (receipt.rejected if format.nullable else 0)
    if file.metadata.num_rows != rows:
        problems.append(f"has {file.metadata.num_rows:,} rows instead of {rows:,}")
    vectors: dict[str, list[pa.Array]] = {format.column: [] for format in promise.formats}
    for batch in file.iter_batches(BATCH_ROWS):
        for name, arrays in vectors.items():
            arrays.append(batch.column(name))
    for name, arrays in vectors.items():
        nulls = sum(array.null_count for array in arrays)
        if nulls != (receipt.rejected if format.nullable else 0):
            problems.append(f"{nulls:,} vectors of {name} are null")
    if checksum(*(array for arrays in vectors.values() for array in arrays)) != receipt.embedding_xxh128:
        problems.append("its vectors are not those that were written (XXH128)")
    for array in vectors[format.column]:
        try:
            matrix, _ = format.matrix(array)
        except ValueError as error:
            return [*problems, first_line(error)]
        broken = int((~np.isfinite(matrix)).any(axis=1).sum())
        if broken:
            return [*problems, f"{broken:,} vectors hold NaN or Inf"]
        tolerance = format.codec.norm_tolerance
        if promise.normalized and tolerance is not None:
            off = int((np.abs(np.linalg.norm(matrix, axis=1) - 1) > tolerance).sum())
            if off:
                return [*problems, f"{off:,} vectors do not have length 1, as the model promises"]
    return problems


def check_rejected(storage: Storage, receipt: Receipt) -> str | None:
    """What is wrong with the file of a slice's rejected rows; None if nothing is."""
    name = f"{REJECTED_FOLDER}/{receipt.shard}"
    try:
        rows = pq.read_metadata(pa.BufferReader(storage.read(name))).num_rows
    except FileNotFoundError:
        return f"{name}: missing, with the {receipt.rejected:,} rejected rows of {receipt.shard}"
    except (pa.ArrowException, OSError) as error:
        return f"{name}: broken ({first_line(error)})"
    return None if rows == receipt.rejected else f"{name}: has {rows:,} rows instead of {receipt.rejected:,}"


def check_cover(receipts: Iterable[Receipt]) -> list[str]:
    """What is missing or there twice among the slices, as far as they tell themselves: 0 to the last of each fragment."""
    problems = []
    fragments: dict[str, dict[int, Receipt]] = {}
    for receipt in receipts:
        slices = fragments.setdefault(receipt.fragment, {})
        other = slices.setdefault(receipt.slice_index, receipt)
        if other.shard != receipt.shard:
            problems.append(f"{receipt.shard}: the slice is there twice, also as {other.shard}")
    for slices in fragments.values():
        some = next(iter(slices.values()))
        last = next((index for index, receipt in slices.items() if receipt.last), None)
        end = max(slices) if last is None else last
        for index in sorted(set(range(end + 1)) - set(slices)):
            problems.append(f"{some.file}: slice {some.fragment_index}-{index} is missing")
        if last is None:
            problems.append(f"{some.file}: the slices after {some.fragment_index}-{end} are missing")
    return problems
