"""Column types: their names, the common type of two files, and the type that Parquet stores.

A common type holds every value of both types without loss. If that depends on the values, they are cast one by one later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import UsageError, first_line
from kosbert_ray.storage.parquet import to_parquet

EXACT_INTEGERS = 2**53  # a double represents integers exactly up to this
UNITS = ("s", "ms", "us", "ns")
MAX_PRECISION = (38, 76)  # of decimal128 and decimal256
DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}  # of integers, by their bits


@dataclass(frozen=True)
class Seen:
    """The type of a column in one file.

    Attributes:
        type: the type.
        wide: whether the column has, or may have, integers that a double cannot represent.
        loose: whether the type was inferred from values, as in JSON, which can be kept as strings, too.
        spelled: whether the strings are numbers that no numeric type can hold together.
    """

    type: pa.DataType
    wide: bool = False
    loose: bool = False
    spelled: bool = False

    def join(self, other: Seen) -> Seen | None:
        """The common type of both; None if there is none without loss."""
        wide, loose, spelled = self.wide or other.wide, self.loose and other.loose, self.spelled and other.spelled
        if self.type == other.type:
            return Seen(self.type, wide, loose, spelled)
        if _is_number(self.type) and _is_number(other.type):
            common = _common_number(self.type, other.type, wide)
            return Seen(common, wide, loose, spelled=is_string(common))
        for one, two in ((self, other), (other, self)):
            if two.spelled and _is_number(one.type):
                return Seen(two.type, wide, loose, spelled=True)
            if one.loose and is_string(two.type) and not pa.types.is_null(one.type):
                return Seen(two.type, wide, loose)
        common = common_type(self.type, other.type)
        return None if common is None else Seen(common, wide, loose)


def common_type(one: pa.DataType, two: pa.DataType, wide: bool = True) -> pa.DataType | None:
    """The narrowest type that holds all values of both types; None if there is none.

    Args:
        one: a type.
        two: another type.
        wide: whether there may be integers that a double cannot represent.
    """
    if one == two:
        return one
    if pa.types.is_null(one) or pa.types.is_null(two):
        return two if pa.types.is_null(one) else one
    if is_string(one) and is_string(two):
        return pa.large_string() if pa.large_string() in (one, two) else pa.string()
    if is_binary(one) and is_binary(two):
        return pa.large_binary() if pa.large_binary() in (one, two) else pa.binary()
    if _is_number(one) and _is_number(two):
        return _common_number(one, two, wide)
    if pa.types.is_decimal(one) or pa.types.is_decimal(two):
        return _common_decimal(one, two)
    if pa.types.is_date(one) and pa.types.is_date(two):
        return pa.date32()
    for check, make in (
        (pa.types.is_timestamp, lambda unit: pa.timestamp(unit, one.tz)),
        (pa.types.is_duration, pa.duration),
        (pa.types.is_time, lambda unit: pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)),
    ):
        if check(one) and check(two):
            if pa.types.is_timestamp(one) and one.tz != two.tz:
                return None
            return make(max(one.unit, two.unit, key=UNITS.index))
    return _common_nested(one, two)


def _common_number(one: pa.DataType, two: pa.DataType, wide: bool) -> pa.DataType:
    """The common type of integers and floats; a string if integers are too large for it."""
    if pa.types.is_floating(one) and pa.types.is_floating(two):
        return one if one.bit_width > two.bit_width else two
    if pa.types.is_integer(one) and pa.types.is_integer(two):
        signed = [kind.bit_width for kind in (one, two) if pa.types.is_signed_integer(kind)]
        unsigned = [kind.bit_width for kind in (one, two) if pa.types.is_unsigned_integer(kind)]
        if not signed:
            return INTEGERS[False, max(unsigned)]
        bits = max(*signed, *(2 * width for width in unsigned), 8)
        return INTEGERS[True, bits] if bits <= 64 else pa.string()
    integer = one if pa.types.is_integer(one) else two
    return pa.string() if wide and integer.bit_width == 64 else pa.float64()


INTEGERS = {
    (True, 8): pa.int8(),
    (True, 16): pa.int16(),
    (True, 32): pa.int32(),
    (True, 64): pa.int64(),
    (False, 8): pa.uint8(),
    (False, 16): pa.uint16(),
    (False, 32): pa.uint32(),
    (False, 64): pa.uint64(),
}


def _common_decimal(one: pa.DataType, two: pa.DataType) -> pa.DataType | None:
    sizes = []
    for kind in (one, two):
        if pa.types.is_integer(kind):
            sizes.append((DIGITS[kind.bit_width], 0))
        elif pa.types.is_decimal(kind):
            sizes.append((kind.precision - kind.scale, kind.scale))
        else:
            return None
    scale = max(after for _, after in sizes)
    precision = max(before for before, _ in sizes) + scale
    if precision <= MAX_PRECISION[0]:
        return pa.decimal128(precision, scale)
    return pa.decimal256(precision, scale) if precision <= MAX_PRECISION[1] else None


def _common_nested(one: pa.DataType, two: pa.DataType) -> pa.DataType | None:
    if _is_list(one) and _is_list(two):
        field = _common_field(one.value_field, two.value_field)
        if field is None:
            return None
        if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(two) and one.list_size == two.list_size:
            return pa.list_(field, one.list_size)
        large = pa.types.is_large_list(one) or pa.types.is_large_list(two)
        return pa.large_list(field) if large else pa.list_(field)
    if pa.types.is_struct(one) and pa.types.is_struct(two):
        theirs = {field.name: field for field in two}
        if len(theirs) < two.num_fields or len({field.name for field in one}) < one.num_fields:
            return None
        fields = []
        for mine in one:
            other = theirs.pop(mine.name, None)
            field = _common_field(mine, other) if other is not None else mine.with_nullable(True)
            if field is None:
                return None
            fields.append(field)
        return pa.struct([*fields, *(field.with_nullable(True) for field in theirs.values())])
    if pa.types.is_map(one) and pa.types.is_map(two):
        key, item = (common_type(a, b, False) for a, b in ((one.key_type, two.key_type), (one.item_type, two.item_type)))
        return None if key is None or item is None else pa.map_(key, item)
    return None


def _common_field(one: pa.Field, two: pa.Field) -> pa.Field | None:
    kind = common_type(one.type, two.type, wide=False)  # values inside lists are checked when they are cast
    return None if kind is None else pa.field(one.name, kind, one.nullable or two.nullable)


def is_string(kind: pa.DataType) -> bool:
    """True if a type is one of Arrow's string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """True if a type is one of Arrow's binary types."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without dictionary encoding; dictionaries differ from file to file."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def may_cast(seen: pa.DataType, asked: pa.DataType) -> bool:
    """True if values of one type may be values of another; each is checked when it is cast."""
    if seen == asked or common_type(seen, asked) is not None:
        return True
    simple = (
        pa.types.is_boolean,
        pa.types.is_date,
        pa.types.is_timestamp,
        pa.types.is_time,
        pa.types.is_decimal,
        _is_number,
    )
    return is_string(asked) and any(check(seen) for check in simple)


def as_parquet(kind: pa.DataType) -> pa.DataType:
    """The type that a column of this type has once read back from Parquet.

    Raises:
        UsageError: Parquet cannot store the type.
    """
    try:
        content = to_parquet(pa.schema([pa.field("x", kind)]).empty_table())
        back = pq.read_schema(pa.BufferReader(content)).field("x").type
    except (pa.ArrowException, NotImplementedError) as error:
        raise UsageError(f"{kind} cannot be written to Parquet ({first_line(error)})") from error
    return kind if back == kind else back


def parse_type(name: str) -> pa.DataType:
    """Parses the name of a type as pyarrow spells it: ``int64``, ``timestamp[us, tz=UTC]``, ``list<item: string>``.

    Raises:
        UsageError: there is no such type.
    """
    try:
        return _parse(name.strip())
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UsageError(
            f"{name!r} is not a column type; write it like int64, string, timestamp[us] or list<string>"
        ) from error


def column_types(names: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Parses the types that a job sets for kept columns."""
    return {column: parse_type(name) for column, name in names.items()}


def _parse(name: str) -> pa.DataType:
    if match := re.fullmatch(r"timestamp\[(s|ms|us|ns), ?tz=([^\]]+)\]", name):
        return pa.timestamp(match[1], match[2])
    if match := re.fullmatch(r"decimal(32|64|128|256)?\((\d+), ?(-?\d+)\)", name):
        return getattr(pa, f"decimal{match[1] or 128}")(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"fixed_size_binary\[(\d+)\]", name):
        return pa.binary(int(match[1]))
    if match := re.fullmatch(r"fixed_size_list<(.*)>\[(\d+)\]", name):
        return pa.list_(_parse_field(match[1], "element"), int(match[2]))
    if match := re.fullmatch(r"(list|large_list|list_view|large_list_view|struct|map)<(.*)>", name):
        parts = _split(match[2])
        if match[1] == "struct":
            return pa.struct([_parse_field(part, None) for part in parts])
        if match[1] == "map":
            key, item = parts[0], re.sub(r" \('.*'\)$", "", parts[1])
            return pa.map_(_parse(key), _parse(item))
        (inner,) = parts
        make = {"list": pa.list_}.get(match[1]) or getattr(pa, match[1])
        return make(_parse_field(inner, "element"))
    return pa.type_for_alias(name)


def _parse_field(text: str, default: str | None) -> pa.Field:
    """Parses ``name: type not null``; the name is optional if there is a default."""
    nullable = not text.endswith(" not null")
    text = text.removesuffix(" not null")
    match = re.match(r"([^:<\[(]+): ", text)
    if match:
        return pa.field(match[1], _parse(text[match.end() :]), nullable)
    if default is None:
        raise ValueError(text)
    return pa.field(default, _parse(text), nullable)


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "<[(") - (character in ">])")
        if character == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in [*parts, text[start:].strip()] if part]
