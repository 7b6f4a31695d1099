"""The destinations of ``kosbert-ray load``, and how tests read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lancedb
import pgvector
import psycopg
from pgvector.psycopg import register_vector
from qdrant_client import QdrantClient, models

KINDS = ("postgresql", "qdrant", "lancedb")


@dataclass(frozen=True)
class Store:
    """A destination, and how to read a table of it back."""

    kind: str
    address: str
    read: Callable[[str], list[dict[str, Any]]]
    drop: Callable[[str], None]
    execute: Callable[[str], None]

    def delete_two_rows(self, table: str) -> None:
        """Deletes the rows with the keys 1000 and 1001, in Qdrant the first two."""
        if self.kind == "postgresql":
            self.execute(f"DELETE FROM {table} WHERE key IN (1000, 1001)")
        elif self.kind == "lancedb":
            lancedb.connect(self.address.partition(":")[2]).open_table(table).delete("key IN (1000, 1001)")
        else:
            client = QdrantClient(path=self.address.partition(":")[2])
            points, _ = client.scroll(table, limit=2)
            client.delete(table, [point.id for point in points])
            client.close()


def store_of(kind: str, folder: Path, fixture: Callable[[str], Any]) -> Store:
    """A destination.

    Args:
        kind: one of ``KINDS``.
        folder: of those that lie in a folder.
        fixture: gives the value of a fixture.
    """

    def nothing(_: str) -> None:
        raise AssertionError("not for this destination")

    if kind == "postgresql":
        address = fixture("postgresql")

        def rows(table: str) -> list[dict[str, Any]]:
            with psycopg.connect(address, row_factory=psycopg.rows.dict_row) as connection:
                register_vector(connection)
                found = connection.execute(f"SELECT * FROM {table}").fetchall()
            return [{name: _plain(value) for name, value in row.items()} for row in found]

        def execute(statement: str) -> None:
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute(statement)

        return Store(kind, address, rows, lambda table: execute(f"DROP TABLE IF EXISTS {table}"), execute)
    if kind == "qdrant":

        def points(table: str) -> list[dict[str, Any]]:
            client = QdrantClient(path=str(folder))
            found, _ = client.scroll(table, limit=100_000, with_vectors=True)
            client.close()
            vectors = ({name: _plain(vector) for name, vector in point.vector.items()} for point in found)
            return [{**(point.payload or {}), **vector} for point, vector in zip(found, vectors, strict=True)]

        def drop(table: str) -> None:
            client = QdrantClient(path=str(folder))
            client.delete_collection(table)
            client.close()

        return Store(kind, f"qdrant:{folder}", points, drop, nothing)

    def lance(table: str) -> list[dict[str, Any]]:
        return lancedb.connect(folder).open_table(table).to_arrow().to_pylist()

    return Store(kind, f"lancedb:{folder}", lance, lambda table: lancedb.connect(folder).drop_table(table), nothing)


def _plain(value: Any) -> Any:
    """A vector as an output's Parquet files have it; other values as they are."""
    if isinstance(value, pgvector.SparseVector):
        return {"indices": value.indices(), "values": value.values()}
    if isinstance(value, models.SparseVector):
        return {"indices": value.indices, "values": value.values}
    return value.to_list() if isinstance(value, pgvector.Vector | pgvector.HalfVector) else value
