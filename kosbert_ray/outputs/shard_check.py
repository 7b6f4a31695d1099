"""Checks single shards against their own footer, their receipt and their job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.outputs.record import JobRecord
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_FOLDER, VECTORS_KEY, checksum, described, footer_of
from kosbert_ray.storage import Storage
from kosbert_ray.units import plural

BATCH_ROWS = 4096
PARQUET_TYPES = {"<element: ": "<item: ", "timestamp[s": "timestamp[ms", "date64[ms]": "timestamp[ms]"}


@dataclass(frozen=True)
class Promise:
    """The properties that a job promises for each of its shards.

    Attributes:
        fingerprint: the digest of the job.
        formats: how vectors are stored, one entry per column of vectors.
        keep: ``name: type`` of each kept column.
        normalized: True if vectors have length 1.
    """

    fingerprint: str
    formats: tuple[VectorFormat, ...]
    keep: tuple[str, ...]
    normalized: bool

    @staticmethod
    def of(record: JobRecord) -> Promise:
        """Returns what a job promises, from its record."""
        return Promise(record.digest, record.formats, record.kept, record.normalized)


@dataclass(frozen=True)
class ShardCheck:
    """The result of checking one file.

    Attributes:
        name: the file.
        size: its bytes; 0 if it could not be read.
        receipt: the slice as the footer describes it; None if there is no such footer.
        problems: what is wrong with it.
        of_this_job: True if its footer names the job, even if the rest is damaged.
    """

    name: str
    size: int
    receipt: Receipt | None
    problems: tuple[str, ...] = field(default=())
    of_this_job: bool = False


def check_shard(storage: Storage, name: str, promise: Promise, receipt: Receipt | None) -> ShardCheck:
    """Reads a whole shard, checks the checksums of its pages, and compares it with its job and its receipt.

    Args:
        storage: the output directory.
        name: the shard.
        promise: what its job promises.
        receipt: its receipt, if the ledger has one.
    """
    try:
        content = storage.read(name)
    except (StorageError, FileNotFoundError) as error:
        return ShardCheck(name, 0, None, (f"cannot be read ({first_line(error)})",))
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        footer = footer_of(file.metadata)
    except KeyError:
        return ShardCheck(name, len(content), None, ("written by another program",))
    except (pa.ArrowException, OSError, ValueError) as error:
        return ShardCheck(name, len(content), None, (f"not an intact shard of kosbert-ray ({first_line(error)})",))
    problems = []
    own: Receipt | None = None
    of_this_job = footer.pop("fingerprint", None) == promise.fingerprint
    if not of_this_job:
        problems.append("made by another job (its fingerprint is not job.json's)")
    try:
        own = Receipt.from_footer(footer, len(content))
    except TypeError as error:
        problems.append(f"its footer is not of this version ({first_line(error)})")
    else:
        if own.shard != name:
            problems.append(f"holds another shard's content, that of {own.shard}")
        if receipt and receipt.footer() != own.footer():
            fields = [key for key, value in own.footer().items() if receipt.footer().get(key) != value]
            problems.append(f"its footer is not its receipt's ({', '.join(fields)} differ)")
    if (file.metadata.metadata or {}).get(VECTORS_KEY) != described(promise.formats):
        problems.append("its footer and job.json disagree on how vectors are stored")
    found = _columns(f"{part.name}: {part.type}" for part in file.schema_arrow)
    expected = _columns([*promise.keep, *(f"{item.column}: {item.field().type}" for item in promise.formats)])
    if found != expected:
        problems.append(f"its columns are ({', '.join(found)}) instead of ({', '.join(expected)})")
    elif own:
        try:
            problems += _check_rows(file, own, promise)
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"its pages are damaged ({first_line(error)})")
    return ShardCheck(name, len(content), own, tuple(problems), of_this_job)


def _columns(described: Iterable[str]) -> list[str]:
    """Returns columns with the names and types that Parquet gives back.

    Parquet calls the "item" of an Arrow list "element" and has neither seconds nor date64, which version 0.1.0 recorded.
    """
    found = []
    for column in described:
        for arrow, parquet in PARQUET_TYPES.items():
            column = column.replace(arrow, parquet)
        found.append(column)
    return found


def _check_rows(file: pq.ParquetFile, receipt: Receipt, promise: Promise) -> Iterable[str]:
    problems = []
    rows = receipt.shard_rows(promise.formats[0].nullable)
    if file.metadata.num_rows != rows:
        problems.append(f"has {plural(file.metadata.num_rows, 'row')} instead of {rows:,}")
    vectors: dict[str, list[pa.Array]] = {item.column: [] for item in promise.formats}
    for batch in file.iter_batches(BATCH_ROWS):
        for name, arrays in vectors.items():
            arrays.append(batch.column(name))
    for name, arrays in vectors.items():
        nulls = sum(array.null_count for array in arrays)
        if nulls != rows - receipt.rows:
            problems.append(f"{name} has {plural(nulls, 'null vector')}")
    if checksum(*(pa.chunked_array(arrays) for arrays in vectors.values() if arrays)) != receipt.embedding_xxh128:
        problems.append("its vectors are not those that were written (XXH128)")
    for item in promise.formats:
        for array in vectors[item.column]:
            try:
                found = item.problem(array, promise.normalized)
            except ValueError as error:
                found = first_line(error)
            if found:
                return [*problems, found]
    return problems


def check_rejected(storage: Storage, receipt: Receipt) -> str | None:
    """Checks the file of a slice's rejected rows. Returns the problem, or None."""
    name = f"{REJECTED_FOLDER}/{receipt.shard}"
    try:
        rows = pq.read_metadata(pa.BufferReader(storage.read(name))).num_rows
    except FileNotFoundError:
        return f"{name}: missing, with the {plural(receipt.rejected, 'rejected row')} of {receipt.shard}"
    except (pa.ArrowException, OSError) as error:
        return f"{name}: damaged ({first_line(error)})"
    return None if rows == receipt.rejected else f"{name}: has {plural(rows, 'row')} instead of {receipt.rejected:,}"


def check_cover(receipts: Iterable[Receipt]) -> list[str]:
    """Finds missing and repeated slices without the input: each fragment has slices 0 to the one marked last."""
    problems = []
    fragments: dict[str, dict[int, Receipt]] = {}
    for receipt in receipts:
        slices = fragments.setdefault(receipt.fragment, {})
        other = slices.setdefault(receipt.slice_index, receipt)
        if other.shard != receipt.shard:
            problems.append(f"{receipt.shard}: the same slice as {other.shard}")
    for slices in fragments.values():
        some = next(iter(slices.values()))
        last = next((index for index, receipt in slices.items() if receipt.last), None)
        end = max(slices) if last is None else last
        for index in sorted(set(range(end + 1)) - set(slices)):
            problems.append(f"{some.file}: slice {some.fragment_index}-{index} is missing")
        if last is None:
            problems.append(f"{some.file}: the slices after {some.fragment_index}-{end} are missing")
    return problems
