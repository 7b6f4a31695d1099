"""Lossless casts to a column's type: Arrow columns as a whole, parsed values one by one."""

from __future__ import annotations

import decimal
import json
import math
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.corpus.names import MISSING
from kosbert_ray.corpus.types import EXACT_INTEGERS, is_string
from kosbert_ray.errors import InputError, first_line

INTEGER = re.compile(r"[+-]?\d+")
SHOWN = 80
REMEDY = "set input.types to a type that holds it, such as string"


def cast_column(array: pa.Array, field: pa.Field, position: int) -> pa.Array:
    """Casts a file's column to the job's type.

    Args:
        array: the values.
        field: the column's name and type.
        position: number of the first row, for the message.

    Raises:
        InputError: a value does not fit; the message begins with its row.
    """
    if array.type == field.type:
        return array
    try:
        return _cast(array, field.type)
    except (pa.ArrowException, NotImplementedError) as error:
        for row in range(len(array)):
            one = array.slice(row, 1)
            try:
                _cast(one, field.type)
            except (pa.ArrowException, NotImplementedError):
                shown = f"{str(one[0])[:SHOWN]} ({array.type})"
                raise InputError(
                    f"row {position + row}: column {field.name!r} is {field.type}, and {shown} does not fit; {REMEDY}"
                ) from error
        raise InputError(
            f"column {field.name!r}: {array.type} cannot be read as {field.type} ({first_line(error)})"
        ) from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    found = array.cast(kind)
    if pa.types.is_floating(array.type) and pa.types.is_floating(kind) and kind.bit_width < array.type.bit_width:
        back = found.cast(array.type)
        same = pc.or_kleene(pc.equal(back, array), pc.is_nan(array))
        if not pc.all(pc.fill_null(same, True)).as_py():
            raise pa.ArrowInvalid("digits would be lost")
    return found


def encodable(value: str) -> bool:
    """True if a string can be written as UTF-8."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def fit(value: Any, field: pa.Field) -> tuple[Any, str | None]:
    """Converts a parsed value to its column's type. Returns the value and, if it does not fit, the reason.

    CSV has strings only; if ``input.types`` gives a column another type, they are parsed.
    """
    if value is None or value is MISSING:
        return None, None
    kind = field.type
    if is_string(kind):
        if not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        return (value, None) if encodable(value) else (None, f"column {field.name!r} holds invalid text")
    if isinstance(value, float) and math.isnan(value):
        return None, None
    found = _fit_scalar(value, kind)
    if found is not MISSING:
        return found, None
    shown = json.dumps(value, default=str, ensure_ascii=False)[:SHOWN]
    shown = shown if encodable(shown) else ascii(shown)
    return None, f"column {field.name!r} is {kind} in the first rows, and here {shown}; {REMEDY}"


def _fit_scalar(value: Any, kind: pa.DataType) -> Any:
    """The value converted to a type; ``MISSING`` if it does not fit."""
    text = isinstance(value, str)
    if pa.types.is_boolean(kind):
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}.get(value.lower(), MISSING) if text else MISSING
    if isinstance(value, bool):
        return MISSING
    if pa.types.is_integer(kind):
        if text and INTEGER.fullmatch(value) and (value == "0" or not value.lstrip("+-").startswith("0")):
            value = int(value)
        if not isinstance(value, int):
            return MISSING
        low = -(2 ** (kind.bit_width - 1)) if pa.types.is_signed_integer(kind) else 0
        high = 2 ** (kind.bit_width - 1) if low else 2**kind.bit_width
        return value if low <= value < high else MISSING
    if pa.types.is_floating(kind):
        if isinstance(value, int):
            return float(value) if abs(value) <= EXACT_INTEGERS else MISSING
        if isinstance(value, float):
            return value
    try:
        if pa.types.is_decimal(kind):
            value = decimal.Decimal(str(value))
        elif text:
            return pa.scalar(value).cast(kind).as_py()
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowException, NotImplementedError, decimal.InvalidOperation, TypeError, ValueError, OverflowError):
        return MISSING
