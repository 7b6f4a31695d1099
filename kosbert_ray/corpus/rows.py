"""The table that rows travel in until they are a slice: the text to embed, its address, why not, and what is kept.

Three columns are ours (their names cannot be a user's: ``input.keep`` refuses names that start with two underscores):
``__text`` (large_string, null where rejected), ``__position`` (int64: byte offset in an uncompressed line file, else row
number from 0) and ``__reason`` (string, null for a good row). The columns to keep follow under their own names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.text import RowText

TEXT = "__text"
POSITION = "__position"
REASON = "__reason"

Row = tuple[int, dict[str, Any], str | None]  # position, values by column, why it cannot be read

INT64 = range(-(2**63), 2**63)


def rows_from_values(rows: Iterable[Row], source: RowText, keep: pa.Schema) -> pa.Table:
    """Columns out of parsed records; a value that does not fit its column makes its row a rejected one."""
    positions: list[int] = []
    reasons: list[str | None] = []
    texts: list[str | None] = []
    kept: dict[str, list[Any]] = {name: [] for name in keep.names}
    for position, values, reason in rows:
        value: Any = None
        for name in source.columns:
            part = values.get(name)
            number = source.joined and isinstance(part, int | float) and not isinstance(part, bool)
            if part is not None and not isinstance(part, str) and not number:
                reason = reason or f"column {name!r} is {type(part).__name__}, not a string"
                break
        else:
            value = source.fill(values)
        if isinstance(value, str) and not _encodable(value):
            reason = reason or "invalid text: a lone surrogate or a byte that is not in the encoding"
            value = None
        for field in keep:
            item, problem = _fit(values.get(field.name), field)
            kept[field.name].append(item)
            reason = reason or problem
        positions.append(position)
        reasons.append(reason)
        texts.append(value if isinstance(value, str) else None)
    return rows_from_arrays(
        source,
        pa.array(texts, pa.large_string()),
        pa.array(positions, pa.int64()),
        pa.array(reasons, pa.string()),
        {field.name: pa.array(kept[field.name], field.type) for field in keep},
    )


def rows_from_arrays(
    source: RowText, text: pa.Array, position: pa.Array, reason: pa.Array, keep: dict[str, pa.Array | pa.ChunkedArray]
) -> pa.Table:
    """The row table; null and empty texts get their reason here, whatever the format."""
    text = source.normalized(text)
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
    reason = pc.coalesce(
        reason,
        pc.if_else(pc.is_null(text), "null text", pc.if_else(empty, "empty text", pa.scalar(None, pa.string()))),
    )
    return pa.table({TEXT: text, POSITION: position, REASON: reason, **keep})


def _encodable(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fit(value: Any, field: pa.Field) -> tuple[Any, str | None]:
    """A parsed value as its column wants it, and what is wrong where it cannot be."""
    if value is None:
        return None, None
    kind = field.type
    if pa.types.is_string(kind):
        if not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        return (value, None) if _encodable(value) else (None, f"column {field.name!r} holds invalid text")
    if pa.types.is_boolean(kind) and isinstance(value, bool):
        return value, None
    if pa.types.is_int64(kind) and isinstance(value, int) and not isinstance(value, bool) and value in INT64:
        return value, None
    if pa.types.is_float64(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), None
    return None, f"column {field.name!r} is {kind} in the first rows, and here {json.dumps(value, default=str)[:80]}"
