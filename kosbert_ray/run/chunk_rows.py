"""Slices whose rows are chunks of texts: expanded after tokenizing, collapsed again where a text has a bad chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.config import CHUNK_COLUMNS, TEXT_HASH
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.encoder.long_text import Chunks
from kosbert_ray.run.slice_row import KEEP, MADE, VECTOR_ROWS, SliceRow
from kosbert_ray.run.text_hashes import hashes_of

SOURCE = "source"  # index of the row that each chunk was cut from
ATTRIBUTES = {"chunk": "number", "chunk_start": "start", "chunk_end": "end"}  # of Chunks


def sources(row: SliceRow) -> npt.NDArray[np.int64]:
    """int64 ``[m]``: for each row, the index of the row that was read."""
    if SOURCE in row.columns:
        found: npt.NDArray[np.int64] = row.columns[SOURCE].to_numpy()
        return found
    return np.arange(len(row.reasons))


def _row_columns(row: SliceRow) -> list[str]:
    """Names of the columns that have one value for each row."""
    return [name for name in row.columns if name in (TEXT, POSITION, REASON, SOURCE) or name.startswith((KEEP, MADE))]


def expand(row: SliceRow, chunks: Chunks, columns: Sequence[str]) -> SliceRow:
    """Replaces each good row by one row for each of its chunks; rejected rows stay.

    Args:
        row: the slice.
        chunks: chunks of the good rows.
        columns: names of the columns that describe chunks in the output.
    """
    texts = row.texts
    good = row.good.to_numpy(zero_copy_only=False)
    counts = np.ones(len(good), np.int64)
    counts[good] = np.bincount(chunks.source, minlength=int(good.sum()))
    source = np.repeat(np.arange(len(good)), counts)
    of_good = good[source]
    at = pa.array(np.cumsum(of_good) - 1, mask=~of_good)
    found = chunk_columns(chunks, texts.filter(pa.array(good)), columns)
    # Texts of good rows are not needed any more, and would be repeated for each chunk.
    row = row.with_columns({TEXT: pc.if_else(good, pa.scalar(None, texts.type), texts)})
    take = pa.array(source)
    taken = {name: row.columns[name].take(take) for name in _row_columns(row)}
    return row.with_columns({**taken, **{MADE + name: column.take(at) for name, column in found.items()}, SOURCE: take})


def chunk_columns(chunks: Chunks, texts: pa.Array, columns: Sequence[str]) -> dict[str, pa.Array]:
    """The columns that describe chunks in the output.

    Args:
        chunks: the chunks.
        texts: the texts they were cut from.
        columns: their names; one that is neither in ``CHUNK_COLUMNS`` nor the hash is that of the chunk's text.
    """
    found = {name: pa.array(getattr(chunks, attribute)) for name, attribute in ATTRIBUTES.items() if name in columns}
    text_name = next((name for name in columns if name not in (*CHUNK_COLUMNS, TEXT_HASH)), None)
    if text_name or TEXT_HASH in columns:
        parts: list[str] = []
        before, text = -1, ""
        for source, start, end in zip(chunks.source.tolist(), chunks.start.tolist(), chunks.end.tolist(), strict=True):
            if source != before:
                before, text = source, texts[source].as_py()
            parts.append(text[start:end])
        of_parts = pa.array(parts, pa.string())
        found |= {text_name: of_parts} if text_name else {}
        found |= {TEXT_HASH: hashes_of(of_parts)} if TEXT_HASH in columns else {}
    return found


def collapse(row: SliceRow) -> SliceRow:
    """Rejects each text that has a bad chunk as one row: a text is embedded as a whole or not at all."""
    reasons = row.reasons
    if SOURCE not in row.columns or reasons.null_count == len(reasons):
        return row
    source = sources(row)
    good = pc.is_null(reasons).to_numpy(zero_copy_only=False)
    first_bad = {int(source[at]): at for at in reversed(np.flatnonzero(~good).tolist())}
    is_bad = np.isin(source, list(first_bad))
    first = np.concatenate(([True], source[1:] != source[:-1]))
    keep = ~is_bad | first
    take = np.arange(len(source))
    take[is_bad] = [first_bad[int(number)] for number in source[is_bad]]  # the reason is that of the first bad chunk
    columns = {name: row.columns[name].take(pa.array(take[keep])) for name in _row_columns(row)}
    for name in columns:
        if name.startswith(MADE):
            columns[name] = pc.if_else(is_bad[keep], pa.scalar(None, columns[name].type), columns[name])
    vector_rows = row.columns[VECTOR_ROWS].filter(pa.array(~is_bad[good]))
    return row.with_columns({**columns, VECTOR_ROWS: vector_rows})
