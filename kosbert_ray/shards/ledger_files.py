"""Reads and writes the ledger's own files: small JSON objects and tables of receipts.

An unreadable file (flipped bits, or written by another program) does not stop a run, because shard footers hold the same
facts. It counts as missing and is listed in ``broken``.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import first_line
from kosbert_ray.shards.receipt import Receipt, from_table, to_table
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

SET_ASIDE_FOLDER = "_kosbert/set_aside"
EMPTY_READ_PAUSES = (0.05, 0.2, 0.0)  # seconds after each read of an empty file
UNREADABLE = (pa.ArrowException, OSError, TypeError, ValueError)  # raised for a damaged table of receipts


@dataclass
class LedgerFiles:
    """The files of one output directory.

    Attributes:
        storage: the output directory.
        broken: names of unreadable files, with the reason.
    """

    storage: Storage
    broken: dict[str, str] = field(default_factory=dict)

    def shards(self) -> dict[str, int]:
        """Lists every Parquet file in the output; returns its size in bytes by name."""
        return {entry.name: entry.size for entry in self.storage.list() if entry.name.endswith(".parquet")}

    def each_shard(self) -> Iterator[str]:
        """Yields the names of Parquet files in the output without waiting for the whole listing of a disk."""
        return (name for name in self.storage.scan() if name.endswith(".parquet"))

    def tables(self, folder: str) -> list[str]:
        """Lists the Parquet files in ``folder``, sorted by name."""
        return [entry.name for entry in self.storage.list(folder) if entry.name.endswith(".parquet")]

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Reads a JSON object. Returns None if there is no such file, and an empty dict if it is broken."""
        content = self._read_small(name)
        if content is None:
            return None
        try:
            found = json.loads(content)
            if not isinstance(found, dict) or not found:
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:  # ValueError includes UnicodeDecodeError
            self.broken[name] = first_line(error)
            return {}
        return found

    def _read_small(self, name: str) -> bytes | None:
        # Where a disk has no hard links, Storage.create leaves a file empty for a moment.
        for pause in EMPTY_READ_PAUSES:
            try:
                content = self.storage.read(name)
            except FileNotFoundError:
                return None
            if content:
                break
            time.sleep(pause)
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON object."""
        self.storage.write_atomic(name, to_json(content))

    def read_receipts(self, name: str) -> list[Receipt]:
        """Reads a table of receipts; raises one of ``UNREADABLE`` if it is missing or broken."""
        return from_table(pq.read_table(io.BytesIO(self.storage.read(name))))

    def write_receipts(self, name: str, receipts: list[Receipt]) -> None:
        """Writes a table of receipts."""
        self.storage.write_atomic(name, to_parquet(to_table(receipts)))

    def set_aside_broken(self, run: str) -> None:
        """Moves the broken files into ``_kosbert/set_aside``, to make room for new ones; ``run`` is part of their names."""
        for name, reason in list(self.broken.items()):
            with contextlib.suppress(FileNotFoundError):
                self.storage.write_atomic(f"{SET_ASIDE_FOLDER}/{run}.{name.replace('/', '.')}", self.storage.read(name))
            self.storage.delete([name])
            self.broken[name] = f"{reason}; set aside"


def to_json(content: Mapping[str, Any]) -> bytes:
    """Serializes a JSON object for people to read."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
