"""Field ids of Parquet, by which tables of Apache Iceberg know the columns of a file.

Outputs of version 0.1.0 have none; job.json records whether an output has them, so that its shards stay alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import pyarrow as pa

FIELD_ID = b"PARQUET:field_id"  # pyarrow's name for it
ENTRY = "field_ids"  # of job.json


def with_field_ids(schema: pa.Schema) -> pa.Schema:
    """Numbers the fields of a schema from 1, as Iceberg numbers those of a new table: level by level, so that a column's
    number depends on its place alone. (https://iceberg.apache.org/spec/#column-projection)
    """
    return pa.schema(_numbered(schema, count(1)), metadata=schema.metadata)


def field_ids(schema: pa.Schema) -> dict[str, int]:
    """The numbers of the fields that have one, by path: ``embedding``, ``embedding.element``."""
    return dict(_ids(schema, ""))


def _numbered(fields: Iterable[pa.Field], numbers: Iterator[int]) -> list[pa.Field]:
    level = [(field, next(numbers)) for field in fields]
    return [
        pa.field(field.name, _inside(field.type, numbers), field.nullable, metadata={FIELD_ID: str(number)})
        for field, number in level
    ]


def _inside(kind: pa.DataType, numbers: Iterator[int]) -> pa.DataType:
    """The type with numbers on the fields inside it."""
    if pa.types.is_struct(kind):
        return pa.struct(_numbered(kind, numbers))
    if pa.types.is_map(kind):
        return pa.map_(*_numbered((kind.key_field, kind.item_field), numbers))
    if pa.types.is_nested(kind) and kind.num_fields == 1:
        (value,) = _numbered((kind.value_field.with_name("element"),), numbers)
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(value, kind.list_size)
        return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)
    return kind


def _ids(fields: Iterable[pa.Field], before: str) -> Iterator[tuple[str, int]]:
    for field in fields:
        number = (field.metadata or {}).get(FIELD_ID)
        if number is not None:
            yield before + field.name, int(number)
        if pa.types.is_nested(field.type):
            inside = [field.type.field(index) for index in range(field.type.num_fields)]
            if pa.types.is_map(field.type):
                inside = [field.type.key_field, field.type.item_field]
            yield from _ids(inside, f"{before}{field.name}.")
