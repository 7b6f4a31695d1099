"""Column types that tables of Iceberg or Delta do not have. Files are published as they are, so nothing can be cast."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from kosbert_ray.corpus.types import may_cast, parse_type
from kosbert_ray.errors import UsageError
from kosbert_ray.outputs.output import Output
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind

UTC = "UTC"
MAX_PRECISION = 38  # of a decimal


# The option that sets the type of each kind of vectors.
DTYPE_OPTIONS: dict[Kind, str] = {DENSE: "dtype", SPARSE: "sparse_dtype", MULTI_VECTOR: "multi_vector_dtype"}


def require_table_types(schema: pa.Schema, output: Output, name: str) -> None:
    """Checks that a table format has the types of all columns.

    Args:
        schema: the columns of a shard.
        output: the output.
        name: of the table format, for the message.

    Raises:
        UsageError: it lacks one.
    """
    vectors = {item.column: item for item in output.formats}
    for column in schema:
        for kind in _leaves(column.type):
            reason = missing_type(kind)
            if not reason:
                continue
            if column.name in vectors:
                item = vectors[column.name]
                raise UsageError(
                    f"column {column.name!r} holds {item.dtype} ({kind}), and {name} has no {reason}; embed into another "
                    f"output with --set output.{DTYPE_OPTIONS[item.kind]}=float32"
                )
            remedy = _remedy(column, kind)
            how = f"with {remedy}, or without the column" if remedy else "without the column"
            raise UsageError(
                f"column {column.name!r} is {column.type}, and {name} has no {reason}; embed into another output {how}"
            )


def require_column_names(names: Collection[str], forbidden: str, name: str) -> None:
    """Checks that a table format takes the names of all columns.

    Args:
        names: of the columns.
        forbidden: characters that it does not take.
        name: of the table format, for the message.

    Raises:
        UsageError: it does not take one.
    """
    seen: dict[str, str] = {}
    for column in names:
        if found := [character for character in column if character in forbidden]:
            raise UsageError(f"column {column!r}: {name} takes no {found[0]!r} in names; rename the column in the input")
        other = seen.setdefault(column.casefold(), column)
        if other != column:
            raise UsageError(
                f"columns {other!r} and {column!r}: {name} takes no names that differ only in case; keep one of them"
            )


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The types in a type that are not nested."""
    if pa.types.is_nested(kind):
        for index in range(kind.num_fields):
            yield from _leaves(kind.field(index).type)
    else:
        yield kind


def missing_type(kind: pa.DataType) -> str:
    """The feature that tables would need for a type that is not nested; empty if they have it."""
    if pa.types.is_float16(kind):
        return "16-bit floats"
    if pa.types.is_unsigned_integer(kind):
        return "unsigned integers"
    if pa.types.is_time(kind):
        return "times of the day that all readers know"
    if pa.types.is_duration(kind):
        return "durations"
    if pa.types.is_null(kind):
        return "type for a column of nulls"
    if pa.types.is_decimal(kind) and kind.precision > MAX_PRECISION:
        return f"decimals of more than {MAX_PRECISION} digits"
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return "nanoseconds"
    if pa.types.is_timestamp(kind) and kind.tz not in (None, UTC):
        return "time zones other than UTC"
    return ""


def _remedy(column: pa.Field, kind: pa.DataType) -> str:
    """The setting that gives a column another type; empty if there is none."""
    other = "string"
    if pa.types.is_timestamp(kind) and not kind.tz:
        other = "timestamp[us]"
    if pa.types.is_unsigned_integer(kind):
        other = "decimal128(20, 0)" if kind.bit_width == 64 else "int64"
    if pa.types.is_float16(kind):
        other = "float"
    possible = column.type == kind and (pa.types.is_null(kind) or may_cast(kind, parse_type(other)))
    return f"--set 'input.types={{{column.name}: \"{other}\"}}'" if possible else ""
