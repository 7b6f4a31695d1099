"""Tables of Iceberg or Delta that an output is published as, and shards that are kept for their readers.

A table names shards in place. While an output is published, a shard that leaves the manifest is retired instead of deleted:
the table names it until it is published again, and readers of its earlier snapshots for some time after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from kosbert_ray.shards.ledger_files import LedgerFiles

PUBLISHED_FOLDER = "_kosbert/published"  # a record for each table
RETIRED_FOLDER = "_kosbert/retired"  # a record for each run that retired shards


@dataclass(frozen=True)
class PublishedTable:
    """A table that names shards of the output.

    Attributes:
        table: its address.
        run: the run whose manifest it shows; empty before the first publish has ended.
        published: Unix time of the last publish, in seconds.
    """

    table: str
    run: str = ""
    published: float = 0.0

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{PUBLISHED_FOLDER}/{hashlib.sha256(self.table.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True)
class Retired:
    """Shards that one run retired.

    Attributes:
        run: the run.
        shards: their names.
        left: Unix time in seconds since which no table names them in its current snapshot; 0 while one may.
    """

    run: str
    shards: tuple[str, ...]
    left: float = 0.0

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{RETIRED_FOLDER}/{self.run}.json"


class Publications:
    """The records of published tables and retired shards of an output, read at first use."""

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files
        self._expired: list[Retired] = []

    @cached_property
    def tables(self) -> list[PublishedTable]:
        """The tables."""
        return [
            PublishedTable(str(record["table"]), str(record.get("run", "")), float(record.get("published", 0.0)))
            for record in self._records(PUBLISHED_FOLDER)
            if "table" in record
        ]

    @cached_property
    def records(self) -> list[Retired]:
        """The retired shards, by the run that retired them, oldest first."""
        return [
            Retired(str(record["run"]), tuple(map(str, record.get("shards", ()))), float(record.get("left", 0.0)))
            for record in self._records(RETIRED_FOLDER)
            if "run" in record
        ]

    @property
    def retired(self) -> frozenset[str]:
        """Names of all retired shards. One that a manifest lists again is among them."""
        return frozenset(shard for record in self.records for shard in record.shards)

    def remember(self, table: PublishedTable) -> None:
        """Writes the record of a table."""
        self._files.write_json(table.name, asdict(table))
        self.__dict__.pop("tables", None)

    def forget(self, table: PublishedTable) -> None:
        """Deletes the record of a table."""
        self._files.storage.delete([table.name])
        self.__dict__.pop("tables", None)

    def retire(self, run: str, shards: Iterable[str]) -> None:
        """Records that a run retires shards."""
        record = Retired(run, tuple(shards))
        if record.shards:
            self._files.write_json(record.name, asdict(record))
            self.__dict__.pop("records", None)

    def expire(self, manifest: Collection[str], in_tables: Collection[str], retain: float) -> list[str]:
        """Finds the retired shards that may be deleted.

        Args:
            manifest: shards in the manifest, which stay.
            in_tables: shards that the tables name in their current snapshots.
            retain: seconds that the others stay after the last table was published without them.

        Returns:
            The shards to delete. Call :meth:`drop_expired` when they are deleted.
        """
        now = time.time()
        stays: set[str] = {*manifest, *in_tables}
        self._expired = []
        for record in list(self.records):
            if not record.left and not {*record.shards}.difference(manifest).intersection(in_tables):
                record = replace(record, left=now)
                self._files.write_json(record.name, asdict(record))
            if record.left and now >= record.left + retain:
                self._expired.append(record)
            else:
                stays.update(record.shards)
        return [shard for record in self._expired for shard in record.shards if shard not in stays]

    def drop_expired(self) -> None:
        """Deletes the records of what :meth:`expire` returned: after the shards, so that none is left without."""
        self._files.storage.delete([record.name for record in self._expired])
        self.__dict__.pop("records", None)

    def _records(self, folder: str) -> list[Mapping[str, Any]]:
        names = [entry.name for entry in self._files.storage.list(folder) if entry.name.endswith(".json")]
        return [record for name in names if (record := self._files.read_json(name))]
