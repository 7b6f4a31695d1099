"""Remembers the row groups of Parquet files, so that a later run of an output need not read the same footers again.

They are kept in ``_kosbert/footers`` and belong to files of the same name, size and version. Losing them costs time only.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.corpus.files import InputFile, RowGroup
from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

FOOTERS_FOLDER = "_kosbert/footers"
MIN_FILES = 256  # to write at once: fewer footers are read as fast as their record
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("rows", pa.list_(pa.int64())),  # of each row group
        ("bytes", pa.list_(pa.int64())),
    ]
)

Key = tuple[str, int, str]


class Footers:
    """The row groups of an output's input files.

    Args:
        output: the output directory.
    """

    def __init__(self, output: Storage) -> None:
        self._output = output

    @cached_property
    def _known(self) -> dict[Key, tuple[RowGroup, ...]]:
        """Row groups by file; listed on first use, which most runs never make."""
        known: dict[Key, tuple[RowGroup, ...]] = {}
        for entry in self._output.list(FOOTERS_FOLDER):
            known |= _read(self._output, entry.name)
        return known

    def filled(self, file: InputFile) -> InputFile | None:
        """Returns a file with its row groups; None if they are unknown."""
        groups = self._known.get(_key(file))
        return None if groups is None else replace(file, row_groups=groups)

    def remember(self, files: Iterable[InputFile], run: str) -> None:
        """Writes the row groups of files that are not known yet, if they are many.

        Args:
            files: the files; those without row groups are ignored.
            run: name of the run, which names the file.
        """
        inspected = {_key(file): file.row_groups for file in files if file.row_groups}
        if len(inspected) < MIN_FILES:
            return
        new = {key: groups for key, groups in inspected.items() if key not in self._known}
        if len(new) < MIN_FILES:
            return
        names, sizes, versions = zip(*new, strict=True)
        rows = [[group.rows for group in groups] for groups in new.values()]
        counts = [[group.bytes for group in groups] for groups in new.values()]
        content = to_parquet(pa.table([names, sizes, versions, rows, counts], SCHEMA))
        self._output.write_atomic(f"{FOOTERS_FOLDER}/{run}.parquet", content)
        self._known.update(new)


def _key(file: InputFile) -> Key:
    return (file.name, *file.listed)


def _read(output: Storage, name: str) -> dict[Key, tuple[RowGroup, ...]]:
    """Reads one record; a broken one is like a missing one."""
    try:
        table = pq.read_table(io.BytesIO(output.read(name))).select(SCHEMA.names).cast(SCHEMA)
    except (FileNotFoundError, StorageError, pa.ArrowException, OSError, KeyError, ValueError):
        return {}
    found = {}
    for name, size, version, rows, counts in zip(*(table[column].to_pylist() for column in SCHEMA.names), strict=True):
        whole = None not in (name, size, version, rows, counts) and len(rows) == len(counts)
        if whole and None not in (*rows, *counts):
            found[name, size, version] = tuple(map(RowGroup, rows, counts))
    return found
