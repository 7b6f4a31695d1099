"""Shared by all exporters: their protocol, their source and their result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kosbert_ray.errors import UsageError
from kosbert_ray.job import require_outside
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.storage import Storage


@dataclass(frozen=True)
class Source:
    """The source of an export.

    Attributes:
        output: a complete output.
        formats: the columns of vectors to export: one if ``--column`` names one, else all of the output's.
        shard_size: bytes that a file is to have; None for the exporter's own choice.
        token_ids: whether sparse vectors have token ids instead of tokens as keys.
    """

    output: Output
    formats: Sequence[VectorFormat]
    shard_size: int | None = None
    token_ids: bool = False


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        address: where it was written.
        rows: how many rows it has.
        kept: files that an earlier export had already written.
        files: how many files it has; None if that means little.
    """

    address: str
    rows: int
    kept: int = 0
    files: int | None = None


class Exporter(Protocol):
    """Writes an output in another format. A second export to the same address replaces or completes the first."""

    def __call__(self, source: Source, address: str) -> Export:
        """Exports ``source``.

        Args:
            source: what to export.
            address: the destination, a folder or URL.

        Raises:
            UsageError: a library is not installed, or the destination holds something else.
            StorageError: a shard cannot be read, or the destination cannot be written.
        """
        ...


def export(
    output: Output,
    address: str,
    exporter: Exporter,
    column: str | None = None,
    shard_size: int | None = None,
    token_ids: bool = False,
) -> Export:
    """Exports a complete output.

    Args:
        output: the output.
        address: the destination, a folder or URL.
        exporter: writes it.
        column: the column of vectors to export; None leaves the choice to the exporter.
        shard_size: bytes that a file is to have; None for the exporter's own choice.
        token_ids: whether sparse vectors have token ids instead of tokens as keys.

    Raises:
        InputError: the output is not complete, or has no such column of vectors.
        UsageError: the destination holds the output, or the exporter refuses.
        StorageError: a shard cannot be read, or the destination cannot be written.
    """
    output.require_complete()
    formats = (output.column_format(column),) if column else output.formats
    if f"{output.storage.address}/".startswith(f"{Storage(address, output.storage.options).address}/"):
        raise UsageError(f"{address}: holds the output itself; choose another folder")
    require_outside(Storage(address, output.storage.options))
    return exporter(Source(output, formats, shard_size, token_ids), address)
