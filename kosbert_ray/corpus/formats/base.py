"""The protocol of input formats.

A format has two parts: :class:`FormatInfo`, which is enough to list files and validate options and loads no library, and an
implementation of :class:`Format`, which is imported when the first file is opened.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from kosbert_ray.corpus.columns import Columns
    from kosbert_ray.corpus.files import InputFile
    from kosbert_ray.corpus.fragments import Fragment, Limits
    from kosbert_ray.corpus.options import LineOptions
    from kosbert_ray.corpus.text import RowText
    from kosbert_ray.corpus.types import Seen
    from kosbert_ray.storage import Storage


@dataclass(frozen=True)
class FormatInfo:
    """The static part of a format.

    Attributes:
        name: value of ``input.format``.
        suffixes: file extensions in lower case, with the dot.
        implementation: import path of the :class:`Format` class, ``package.module:Class``.
        lines: whether files consist of lines. Such files may be compressed, and their rows are addressed by byte offset.
        splittable: whether an uncompressed file can be read from the middle.
    """

    name: str
    suffixes: tuple[str, ...]
    implementation: str
    lines: bool = True
    splittable: bool = True

    def one_pass(self, file: InputFile) -> bool:
        """True if a file can only be read from its start."""
        return not self.splittable or file.compression is not None

    def row_numbers(self, file: InputFile) -> bool:
        """True if rows are addressed by row number; otherwise by the offset of their first byte."""
        return not self.lines or file.compression is not None


@dataclass(frozen=True)
class Wanted:
    """The text, the columns to keep and the line options that a job asks of every file."""

    text: RowText
    keep: Sequence[str]
    options: LineOptions


@dataclass(frozen=True)
class Look:
    """The result of inspecting one file.

    Attributes:
        file: the file; for Parquet, with its row groups.
        names: its columns.
        types: the types of the columns to keep; columns that the file lacks are absent.
        notices: remarks for the user, without the file's address.
        empty: whether the file has no rows, so that its column types mean little.
        absent: text columns that none of the inspected rows has; in JSON Lines, later rows may.
    """

    file: InputFile
    names: tuple[str, ...]
    types: Mapping[str, Seen] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    empty: bool = False
    absent: tuple[str, ...] = ()


class Format(Protocol):
    """Inspects, splits and reads the files of one format.

    Attributes:
        tail_bytes: number of bytes from the end of a file that :meth:`look` can make use of. In an object store they are
            fetched for many files at once.
        open_schema: whether later rows may have columns that the first rows lack.
    """

    info: FormatInfo
    tail_bytes: ClassVar[int] = 0
    open_schema: ClassVar[bool] = False

    def __init__(self, info: FormatInfo) -> None:
        self.info = info

    @abstractmethod
    def look(self, storage: Storage, file: InputFile, wanted: Wanted, tail: bytes | None) -> Look:
        """Inspects a file that is not empty.

        Args:
            storage: the input folder.
            file: the file.
            wanted: what the job asks of it.
            tail: its last ``tail_bytes`` bytes, if they have been fetched.

        Raises:
            InputError: the file is broken, has another format than its name says, or lacks a text column.
            StorageError: the file cannot be read.
        """

    def look_later(self, storage: Storage, file: InputFile, wanted: Wanted, names: Collection[str]) -> dict[str, Seen]:  # noqa: ARG002
        """Searches rows beyond the first ones for columns; only called for formats with an open schema."""
        return {}

    @abstractmethod
    def fragments(self, file: InputFile, limits: Limits, newlines_in_values: bool) -> Iterator[Fragment]:
        """Splits a file into fragments; an empty file has none.

        Args:
            file: the file.
            limits: size of a slice, and so about that of a fragment.
            newlines_in_values: whether a quoted CSV value may span lines.
        """

    @abstractmethod
    def rows(
        self, storage: Storage, fragment: Fragment, columns: Columns, options: LineOptions
    ) -> Iterator[tuple[pa.Table, int]]:
        """Reads a fragment.

        Args:
            storage: the input folder.
            fragment: what to read.
            columns: the columns to read.
            options: how to read line formats.

        Yields:
            Row tables (see ``row_table``), each with the number of bytes of the stored file that were read for it.

        Raises:
            InputError: the file is broken or lacks a text column.
            InputBroken: the file is broken from some point on; the rows before it have been yielded.
            StorageError: the file cannot be read.
        """
