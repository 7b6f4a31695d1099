"""Ids of the rows of an output: UUIDs of their places in the input, or a kept column."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from kosbert_ray.errors import InputError
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.units import plural

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

CHUNK = "chunk"  # the column with the number of a chunk in its text
NAMESPACE = uuid.UUID("a7b3f5f2-6d0e-5c0b-9a53-7f1f0c8d2e41")  # of UUIDv5; must never change
PASS_ROWS = 2**23  # whose hashes are held at once: 64 MiB


def first_rows(receipts: Sequence[Receipt]) -> dict[str, int]:
    """The number of the first input row of each shard in its input file, from the receipts of all slices."""
    firsts: dict[str, int] = {}
    rows: Counter[str] = Counter()
    for receipt in sorted(receipts, key=lambda item: (item.file, item.fragment_index, item.slice_index)):
        if receipt.shard:
            firsts[receipt.shard] = rows[receipt.file]
        rows[receipt.file] += receipt.input_rows or receipt.rows + receipt.rejected  # early versions counted no input rows
    return firsts


def input_rows(output: Output, receipt: Receipt, chunk: pa.ChunkedArray | None, count: int) -> Int64:
    """The index in its slice of the input row that each row of a shard was made of, int64 ``[count]``.

    Args:
        output: the output.
        receipt: the shard.
        chunk: the numbers of chunks, if rows are chunks.
        count: rows of the shard.
    """
    if chunk is None:
        index = np.arange(count)
    else:  # a rejected row that is kept has no chunk
        numbers = pc.fill_null(chunk.cast(pa.int64()), 0).to_numpy()
        index = np.cumsum(numbers == 0) - 1
    if not receipt.rejected or output.nullable:
        return index
    rejected = read_rejected(output.storage, receipt.shard)["slice_row"]
    if rejected.null_count:  # written by an earlier version: rows are counted without the rejected ones
        return index
    good = np.setdiff1d(np.arange(receipt.input_rows), rejected.to_numpy())
    return good[index]


def place_ids(file: str, rows: Int64, chunks: Sequence[int | None] | None) -> list[uuid.UUID]:
    """UUIDv5 (RFC 9562) of each row's input file, row number and chunk number (0 without chunks)."""
    places = zip(rows.tolist(), chunks or [0] * len(rows), strict=True)
    return [uuid.uuid5(NAMESPACE, f"{file}\n{row}\n{chunk or 0}") for row, chunk in places]


class RowIds:
    """UUIDs of the rows of an output, from their places in the input; see :func:`place_ids`.

    Args:
        output: a complete output.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._receipts = {receipt.shard: receipt for receipt in output.receipts if receipt.shard}
        self._firsts = first_rows(output.manifest or ())

    def of(self, shard: str, table: pa.Table, valid: pa.Array) -> list[uuid.UUID]:
        """Returns the ids of the rows of a shard that have a vector.

        Args:
            shard: the shard's name.
            table: its rows, with the column ``chunk`` if rows are chunks.
            valid: bool ``[rows]``, which of them have a vector.
        """
        output, receipt = self._output, self._receipts[shard]
        chunk = table[CHUNK] if output.job.chunked else None
        rows = self._firsts[shard] + input_rows(output, receipt, chunk, table.num_rows)
        chosen = rows[valid.to_numpy(zero_copy_only=False)]
        return place_ids(receipt.file, chosen, None if chunk is None else chunk.filter(valid).to_pylist())


def require_unique(output: Output, shards: Sequence[str], columns: Sequence[str]) -> None:
    """Checks that no two rows have the same id, and that none has a null id.

    Reads the columns once for every ``PASS_ROWS`` rows.

    Args:
        output: the output.
        shards: the shards.
        columns: the columns that make the id.

    Raises:
        InputError: names two rows with the same id, or rows without one.
    """
    passes = 1 + output.totals.rows // PASS_ROWS
    for number in range(passes):
        found = [hashes[hashes % np.uint64(passes) == number] for _, _, hashes in _hashed(output, shards, columns)]
        values = np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))
        repeated = values[1:][values[1:] == values[:-1]]
        if len(repeated):
            _require_different(output, shards, columns, np.unique(repeated))


def _hashed(output: Output, shards: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table, UInt64]]:
    """Yields each shard's ids and their hashes."""
    for shard in shards:
        with open_shard(output.storage, shard) as file:
            table = file.read(list(columns))
        for name in columns:
            if table[name].null_count:
                rows = np.flatnonzero(table[name].is_null().to_numpy())[:2].tolist()
                where = " and ".join(f"row {row:,}" for row in rows)
                raise InputError(
                    f"--id {name}: null in {where} of {output.storage.url(shard)} "
                    f"({plural(table[name].null_count, 'row')} of the shard); choose a column that identifies each row"
                )
        keys = zip(*(table[name].to_pylist() for name in columns), strict=True)
        yield shard, table, np.array([xxhash.xxh3_64_intdigest(repr(key).encode()) for key in keys], np.uint64)


def _require_different(output: Output, shards: Sequence[str], columns: Sequence[str], suspects: UInt64) -> None:
    """Raises InputError if rows with the same hash have the same id, too."""
    seen: dict[tuple[object, ...], tuple[str, int]] = {}
    for shard, table, hashes in _hashed(output, shards, columns):
        for row in np.flatnonzero(np.isin(hashes, suspects)).tolist():
            key = tuple(table[name][row].as_py() for name in columns)
            if key in seen:
                first, at = seen[key]
                shown = ", ".join(map(repr, key))
                raise InputError(
                    f"--id {columns[0]}: {shown} is in row {at:,} of {output.storage.url(first)} and in row {row:,} of "
                    f"{output.storage.url(shard)}; choose a column that identifies each row"
                )
            seen[key] = (shard, row)
