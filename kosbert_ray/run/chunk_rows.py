"""A slice whose rows are chunks of its texts: many rows of one text, until the text is found to be bad as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.config import CHUNK_TEXT
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.encoder.long_text import Chunks
from kosbert_ray.run.slice_row import replace_columns, unnest

KEEP = "keep."
CHUNK = "chunk."
SOURCE = "source"  # which of the slice's rows each row is of
ATTRIBUTES = {"chunk": "number", "chunk_start": "start", "chunk_end": "end"}  # of Chunks
VECTOR_ROWS = "vector_rows"  # which vector is each good row's


def sources(row: pa.Table) -> npt.NDArray[np.int64]:
    """int64 ``[m]``: of each row, which row of the slice as it was read it is of."""
    if SOURCE in row.column_names:
        found: npt.NDArray[np.int64] = unnest(row, SOURCE).to_numpy()
        return found
    return np.arange(len(unnest(row, REASON)))


def _of_rows(row: pa.Table) -> list[str]:
    names = row.column_names
    return [name for name in names if name in (TEXT, POSITION, REASON, SOURCE) or name.startswith((KEEP, CHUNK))]


def expand(row: pa.Table, chunks: Chunks, columns: Sequence[str]) -> pa.Table:
    """A slice with a row for each chunk; rejected rows stay as they are.

    Args:
        row: the slice.
        chunks: of its good rows.
        columns: names of the columns that say which chunk a row is.
    """
    reasons, texts = unnest(row, REASON), unnest(row, TEXT)
    good = pc.is_null(reasons).to_numpy(zero_copy_only=False)
    counts = np.ones(len(good), np.int64)
    counts[good] = np.bincount(chunks.source, minlength=int(good.sum()))
    source = np.repeat(np.arange(len(good)), counts)
    of_good = good[source]
    at = pa.array(np.cumsum(of_good) - 1, mask=~of_good)
    found = chunk_columns(chunks, texts.filter(pa.array(good)), columns)
    values = {CHUNK + name: column.take(at) for name, column in found.items()}
    # The texts of good rows go no further, and here they would be there many times.
    rejected = replace_columns(row, (TEXT,), {TEXT: pc.if_else(good, pa.scalar(None, texts.type), texts)})
    take = pa.array(source)
    names = _of_rows(rejected)
    taken = {name: unnest(rejected, name).take(take) for name in names}
    return replace_columns(rejected, names, taken | values | {SOURCE: take})


def chunk_columns(chunks: Chunks, texts: pa.Array, columns: Sequence[str]) -> dict[str, pa.Array]:
    """What the output says of chunks, by the names in ``columns`` that are ours; ``texts`` are those they are of."""
    found = {name: pa.array(getattr(chunks, attribute)) for name, attribute in ATTRIBUTES.items() if name in columns}
    if CHUNK_TEXT in columns:
        parts: list[str] = []
        before, text = -1, ""
        for source, start, end in zip(chunks.source.tolist(), chunks.start.tolist(), chunks.end.tolist(), strict=True):
            if source != before:
                before, text = source, texts[source].as_py()
            parts.append(text[start:end])
        found[CHUNK_TEXT] = pa.array(parts, pa.string())
    return found


def collapse(row: pa.Table) -> pa.Table:
    """A slice in which a text with a bad chunk is one rejected row: a text is there whole, or not at all."""
    reasons = unnest(row, REASON)
    if SOURCE not in row.column_names or reasons.null_count == len(reasons):
        return row
    source = sources(row)
    good = pc.is_null(reasons).to_numpy(zero_copy_only=False)
    first_bad = {int(source[at]): at for at in reversed(np.flatnonzero(~good).tolist())}
    is_bad = np.isin(source, list(first_bad))
    first = np.concatenate(([True], source[1:] != source[:-1]))
    keep = ~is_bad | first
    take = np.arange(len(source))
    take[is_bad] = [first_bad[int(number)] for number in source[is_bad]]  # the reason is that of its first bad chunk
    columns = {name: unnest(row, name).take(pa.array(take[keep])) for name in _of_rows(row)}
    for name in columns:
        if name.startswith(CHUNK):
            columns[name] = pc.if_else(is_bad[keep], pa.scalar(None, columns[name].type), columns[name])
    vector_rows = unnest(row, VECTOR_ROWS).filter(pa.array(~is_bad[good]))
    return replace_columns(row, (*columns, VECTOR_ROWS), columns | {VECTOR_ROWS: vector_rows})
