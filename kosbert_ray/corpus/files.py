"""An input file, as the listing found it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group: its number of rows and the uncompressed bytes of its text columns."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class InputFile:
    """One file of the corpus.

    Attributes:
        name: path below the input folder.
        size: bytes, as stored.
        version: identifies the content: the store's ETag or, on disk, the mtime first seen with this content.
        format: name of the input format.
        compression: "gzip", "zstd", "zip" or None. Compression inside a format, as in Parquet, does not count.
        row_groups: Parquet row groups; known once the footer has been read.
        stat: the current mtime, if it differs from ``version``.
    """

    name: str
    size: int
    version: str
    format: str
    compression: str | None = None
    row_groups: tuple[RowGroup, ...] = field(default=(), repr=False)
    stat: str = ""

    @property
    def listed(self) -> tuple[int, str]:
        """Size and version that a listing reports as long as the file is unchanged."""
        return self.size, self.stat or self.version

    @property
    def rows(self) -> int:
        """Rows of a Parquet file; known once the footer has been read."""
        return sum(group.rows for group in self.row_groups)
