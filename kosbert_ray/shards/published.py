"""Tables of Iceberg or Delta that an output is published as, and shards that are kept for their readers.

A table names shards in place. While an output is published, a shard that leaves the manifest is retired instead of deleted:
the table names it until it is published again, and readers of its earlier snapshots for some time after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
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
    """

    table: str
    run: str = ""

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
    """The records of published tables and retired shards of an output. No shard in the manifest is among the retired."""

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files

    @property
    def tables(self) -> list[PublishedTable]:
        """The tables. One whose record is damaged may name anything, like one that was never published to the end."""
        found = []
        for name, record in self._records(PUBLISHED_FOLDER):
            table = record.get("table")
            if isinstance(table, str):
                found.append(PublishedTable(table, str(record.get("run", ""))))
            else:
                found.append(PublishedTable(f"the one of {self._files.storage.url(name)}, which is damaged"))
        return found

    @property
    def records(self) -> list[Retired]:
        """The retired shards, by the run that retired them, oldest first. Those of a damaged record stay for good."""
        return [
            Retired(record["run"], tuple(map(str, record.get("shards", ()))), float(record.get("left", 0.0)))
            for _, record in self._records(RETIRED_FOLDER)
            if isinstance(record.get("run"), str)
        ]

    @property
    def retired(self) -> frozenset[str]:
        """Names of all retired shards."""
        return frozenset(shard for record in self.records for shard in record.shards)

    def find(self, address: str) -> PublishedTable | None:
        """The table at an address; None if the output is not published there. A damaged record counts."""
        table = PublishedTable(address)
        known = next((item for item in self.tables if item.table == address), None)
        return known or (table if self._files.storage.exists(table.name) else None)

    def remember(self, table: PublishedTable) -> None:
        """Writes the record of a table."""
        self._files.write_json(table.name, asdict(table))

    def forget(self, table: PublishedTable) -> None:
        """Deletes the record of a table."""
        self._files.storage.delete([table.name])

    def retire(self, run: str, shards: Iterable[str]) -> None:
        """Records that a run retires shards."""
        record = Retired(run, tuple(shards))
        if record.shards:
            self._write(record)

    def reinstate(self, shards: Collection[str]) -> None:
        """Takes shards out of the records, because they are to be in the manifest again."""
        for record in self.records:
            left = tuple(shard for shard in record.shards if shard not in shards)
            if not left:
                self.drop([record])
            elif len(left) < len(record.shards):
                self._write(replace(record, shards=left))

    def expired(self, in_tables: Collection[str], retain: float, mark: bool = True) -> list[Retired]:
        """Returns the retired shards that may be deleted.

        Args:
            in_tables: shards that the tables name in their current snapshots.
            retain: seconds that a shard stays after the last table was published without it.
            mark: whether to record since when no table names them.
        """
        now = time.time()
        found = []
        for record in self.records:
            if not record.left and not {*record.shards}.intersection(in_tables):
                record = replace(record, left=now)
                if mark:
                    self._write(record)
            if record.left and now >= record.left + retain:
                found.append(record)
        return found

    def drop(self, records: Iterable[Retired]) -> None:
        """Deletes records: after their shards, so that none is left without."""
        self._files.storage.delete([record.name for record in records])

    def _write(self, record: Retired) -> None:
        self._files.write_json(record.name, asdict(record))

    def _records(self, folder: str) -> list[tuple[str, Mapping[str, Any]]]:
        names = [entry.name for entry in self._files.storage.list(folder) if entry.name.endswith(".json")]
        return [(name, record) for name in names if (record := self._files.read_json(name)) is not None]
