"""The texts of an output as they were embedded, read from the columns of its shards."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.text import RowText

TEXT_TYPES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}
CHUNK_PLACE = ("chunk_start", "chunk_end")


@dataclass(frozen=True)
class KeptTexts:
    """Reads the texts that the vectors of a shard were made of: of chunks the chunk, without the prompt.

    Attributes:
        columns: the columns that this takes.
    """

    columns: tuple[str, ...]
    _source: RowText
    _copied: bool
    _chunked: bool

    @staticmethod
    def of(job: JobConfig, kept: Collection[str], whole: bool = False) -> KeptTexts | None:
        """Returns the reader for the outputs of a job; None if they do not hold their texts.

        A text column of another type than string may have been spelled in another way before it was cast, so it does not
        hold the text.

        Args:
            job: the job.
            kept: ``name: type`` of each column of its outputs beside the vectors, as the fingerprint has them.
            whole: whether to read the whole text of each row, also where rows are chunks.
        """
        source, chunked = RowText.of(job.input), job.chunked and not whole
        if column := job.row_text() if whole else job.copied_column():
            return KeptTexts((column,), source, True, chunked)
        texts = {name for name, _, kind in (column.rpartition(": ") for column in kept) if kind in TEXT_TYPES}
        if {*source.columns} <= texts & {*job.input.keep}:
            return KeptTexts((*source.columns, *(CHUNK_PLACE if chunked else ())), source, False, chunked)
        return None

    def read(self, table: pa.Table) -> pa.Array:
        """Returns the text of each row of a shard's table: large_string ``[n]``; null for a rejected row."""
        if not self._copied:
            texts = self._source.normalized(
                self._source.join({name: table[name].combine_chunks() for name in self._source.columns})
            )
            return chunk_texts(texts, table) if self._chunked else texts
        texts = table[self.columns[0]].combine_chunks()
        return texts.cast(pa.large_string()) if self._chunked else self._source.remade(texts)


def chunk_texts(texts: pa.Array, table: pa.Table) -> pa.Array:
    """Cuts the chunk of each row out of its whole text: large_string ``[n]``.

    Args:
        texts: the whole text of each row.
        table: the rows, with their columns ``chunk_start`` and ``chunk_end``.
    """
    places = zip(*(table[name].to_pylist() for name in CHUNK_PLACE), strict=True)
    return pa.array(
        [
            None if text is None or start is None else text[start:end]
            for text, (start, end) in zip(texts.to_pylist(), places, strict=True)
        ],
        pa.large_string(),
    )
