"""Shared by exporters that write files of their own for each shard."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kosbert_ray.job import reader_threads
from kosbert_ray.outputs.export import sidecar
from kosbert_ray.outputs.export.base import Export
from kosbert_ray.outputs.output import Output
from kosbert_ray.storage import Storage

SIDECAR = "export.json"  # says what was exported; written first as incomplete, and last as complete


def export_shards(
    output: Output,
    target: Storage,
    content: dict[str, Any],
    present: Collection[str],
    files: Mapping[str, tuple[str, ...]],
    write: Callable[[str], None],
) -> Export:
    """Writes the files of shards.

    Files of an earlier export of the same output stay, and those of shards that are gone are deleted.

    Args:
        output: the output.
        target: the destination.
        content: of the sidecar.
        present: files of an export that are there.
        files: the files of each shard.
        write: writes the files of a shard.

    Raises:
        UsageError: the destination holds another export, or files of no export.
        StorageError: a shard cannot be read, or the destination cannot be written.
    """
    found = {*present}
    expected = {name for names in files.values() for name in names}
    others = {entry.name for entry in target.list()} - {SIDECAR}
    sidecar.require_same_export(target, SIDECAR, content, (found | others) - expected)
    sidecar.write(target, SIDECAR, content, complete=False)
    target.delete(sorted(found - expected))
    missing = [shard for shard, names in files.items() if not {*names} <= found]
    with ThreadPoolExecutor(reader_threads(output.storage)) as pool:
        for _ in pool.map(write, missing):
            pass
    sidecar.write(target, SIDECAR, content, complete=True)
    rows = sum(receipt.rows for receipt in output.receipts if receipt.shard in files)
    return Export(target.address, rows, kept=len(files) - len(missing))
