"""An output as an Arrow dataset or table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.shards.shard import reading
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

MEMORY_SHARE = 0.8  # of the free memory that a table may take
GIB = 2**30


def dataset(output: Output) -> ds.Dataset:
    """Returns a dataset over the shards in the output.

    Raises:
        InputError: there are no shards yet.
    """
    shards = output.shards()
    if not shards:
        raise InputError(f"{output.storage.url()}: no shards in it yet")
    paths = [output.storage.path(shard) for shard in shards]
    with reading(output.storage, shards[0]):
        return ds.dataset(paths, format="parquet", filesystem=output.storage.fs)


def to_arrow(output: Output, columns: Sequence[str] | None, limit: int | None) -> pa.Table:
    """Reads rows of the output into memory.

    Args:
        output: the output.
        columns: the columns to read; None for all.
        limit: the most rows to read; None for all.

    Raises:
        InputError: there are no shards yet, or a column does not exist.
        UsageError: the table would not fit into the memory that is free.
    """
    source = dataset(output)
    names = source.schema.names if columns is None else list(columns)
    if unknown := [name for name in names if name not in source.schema.names]:
        raise InputError(f"{output.storage.url()}: no column {unknown[0]!r}; there are {', '.join(source.schema.names)}")
    rows = sum(receipt.shard_rows(output.nullable) for receipt in output.receipts)
    if limit is not None:
        rows = min(rows, limit)
    needed, free = rows * _row_bytes(output, names), _free_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise UsageError(
            f"{output.storage.url()}: {plural(rows, 'row', 'take')} about {needed / GIB:,.1f} GiB, "
            f"and {free / GIB:,.1f} GiB are "
            "free; choose columns or a limit, or scan the rows with Output.dataset()"
        )
    with reading(output.storage, output.shards()[0]):
        return source.head(rows, columns=names) if limit is not None else source.to_table(columns=names)


def _row_bytes(output: Output, columns: Sequence[str]) -> float:
    """Estimates the bytes of a row in memory from the first shard that has rows."""
    shard = next((receipt.shard for receipt in output.receipts if receipt.rows), output.shards()[0])
    with open_shard(output.storage, shard) as file:
        table = file.read_row_group(0, columns=list(columns))
    return float(table.nbytes / max(1, table.num_rows))


def _free_memory() -> int | None:
    """Bytes of memory that this process can still take; None if the system does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" if it has none
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")) for name in ("max", "current"))
        found.append(limit - used)
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)
