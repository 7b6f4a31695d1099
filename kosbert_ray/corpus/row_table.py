"""The row table: rows as they are read, before they are cut into slices.

Its columns are ``__text`` (large_string; null if there is none), ``__position`` (int64: byte offset in an uncompressed line
file, otherwise row number from 0) and ``__reason`` (string: why the row is rejected; null for a good row), followed by the
columns to keep. ``input.keep`` refuses names that start with two underscores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.cast import encodable, fit
from kosbert_ray.corpus.names import MISSING, pick
from kosbert_ray.corpus.text import RowText, spelled

TEXT = "__text"
POSITION = "__position"
REASON = "__reason"

Row = tuple[int, dict[str, Any], str | None]  # position, values by column, why the row is rejected

# White space, control and format characters, Hangul fillers, the Braille blank, and characters that only modify others.
INVISIBLE = r"^[\s\p{Z}\p{Cc}\p{Cf}\x{115F}\x{1160}\x{3164}\x{FFA0}\x{2800}\x{034F}\x{180B}-\x{180F}\x{FE00}-\x{FE0F}]*$"


def rows_from_values(rows: Iterable[Row], source: RowText, keep: pa.Schema) -> pa.Table:
    """Makes a row table of parsed records; a row with a value that does not fit its column is rejected."""
    positions: list[int] = []
    reasons: list[str | None] = []
    texts: list[str | None] = []
    originals: list[str | None] = []
    kept: dict[str, list[Any]] = {name: [] for name in keep.names}
    for position, values, reason in rows:
        parts: dict[str, Any] = {}
        value: Any = None
        for name in source.columns:
            part = pick(values, name)
            if part is MISSING or part is None:
                continue
            if isinstance(part, float) and math.isnan(part):
                continue
            number = source.joined and isinstance(part, int | float) and not isinstance(part, bool)
            if not isinstance(part, str) and not number:
                reason = reason or f"column {name!r} is {type(part).__name__}, not a string"
                break
            parts[name] = part
        else:
            value = source.fill(parts)
        if isinstance(value, str) and not encodable(value):
            reason = reason or "invalid text: a lone surrogate or a byte that is not in the encoding"
            value = None
        for field in keep:
            item, problem = fit(pick(values, field.name), field)
            kept[field.name].append(item)
            reason = reason or problem
        positions.append(position)
        reasons.append(reason)
        texts.append(value if isinstance(value, str) else None)
        originals.append(_original(source, parts, texts[-1]))
    return rows_from_arrays(
        source,
        pa.array(texts, pa.large_string()),
        pa.array(positions, pa.int64()),
        pa.array(reasons, pa.string()),
        {field.name: pa.array(kept[field.name], field.type) for field in keep},
        None if source.copy is None else pa.array(originals, pa.string()),
    )


def _original(source: RowText, parts: Mapping[str, Any], text: str | None) -> str | None:
    """The text of a row as it is in the input, if it could be read."""
    if text is None or len(source.columns) > 1:
        return text
    part = parts[source.columns[0]]
    return part if isinstance(part, str) else spelled(part)


def rows_from_arrays(
    source: RowText,
    text: pa.Array,
    position: pa.Array,
    reason: pa.Array,
    keep: dict[str, pa.Array | pa.ChunkedArray],
    original: pa.Array | None,
) -> pa.Table:
    """Makes a row table of columns; rejects rows with a null or empty text.

    Args:
        source: how the text was made.
        text: large_string ``[n]``, before it is normalized.
        position, reason: see above.
        keep: the columns to keep.
        original: string ``[n]``, the texts to copy; None if they are not copied.
    """
    if source.copy is not None:
        keep = {**keep, source.copy: original}
    text = source.normalized(text)
    empty = pc.match_substring_regex(text, INVISIBLE)
    reason = pc.coalesce(
        reason,
        pc.if_else(pc.is_null(text), "null text", pc.if_else(empty, "empty text", pa.scalar(None, pa.string()))),
    )
    return pa.table({TEXT: text, POSITION: position, REASON: reason, **keep})
