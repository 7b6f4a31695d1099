"""The columns of a job: those the text is made of and those carried through to the output."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from kosbert_ray.corpus.names import composed
from kosbert_ray.corpus.text import RowText

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Columns:
    """The columns to read, settled for all files.

    Attributes:
        source: how the text is made.
        keep: the columns carried through, with their types; a text column may be among them, and ``source.copy`` is.
        partitions: those of ``keep`` that no file contains: they are keys in the files' paths (``year=2026/``) and strings.
    """

    source: RowText
    keep: pa.Schema
    partitions: tuple[str, ...] = ()

    @property
    def stored(self) -> pa.Schema:
        """The columns carried through that the files contain."""
        return pa.schema([field for field in self.keep if field.name not in (*self.partitions, self.source.copy)])

    @property
    def read(self) -> list[str]:
        """Names of the columns to read, without duplicates."""
        return list(dict.fromkeys([*self.source.columns, *self.stored.names]))


def path_keys(path: str) -> dict[str, str | None]:
    """Hive partition keys of a path, NFC-normalized: ``a/year=2026/part.jsonl`` → ``{"year": "2026"}``."""
    pairs = [part.partition("=") for part in path.split("/")[:-1] if "=" in part.lstrip("=")]
    return {composed(key): None if value == HIVE_NULL else unquote(value) for key, _, value in pairs}
