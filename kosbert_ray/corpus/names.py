"""Finds columns by name: spelled exactly, in another Unicode form, or as a field of a struct (``doc.text``).

macOS and some editors write Korean names decomposed (NFD). They look like composed names and count as equal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.errors import InputError

MAX_SHOWN = 40
MISSING: Any = object()

Place = tuple[str, ...]  # a column's name and, for a value inside structs, the names of the fields


def composed(name: str) -> str:
    """The name in Unicode form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def own_name(name: str, names: Iterable[str]) -> str | None:
    """The spelling of a name among ``names``; None if it is missing."""
    names = list(names)
    if name in names:
        return name
    wanted = composed(name)
    return next((other for other in names if not other.isascii() and composed(other) == wanted), None)


def locate(name: str, schema: pa.Schema | pa.StructType) -> Place | None:
    """Finds a column in a schema; None if it is missing.

    Raises:
        InputError: the schema has the name more than once.
    """
    names = [field.name for field in schema]
    own = own_name(name, names)
    if own is not None:
        if names.count(own) > 1:
            raise InputError(f"column {own!r} appears {names.count(own)} times; give each its own name")
        return (own,)
    parts = name.split(".")
    for count in range(1, len(parts)):
        head = own_name(".".join(parts[:count]), names)
        if head is None or names.count(head) > 1:
            continue
        kind = schema.field(head).type
        rest = locate(".".join(parts[count:]), kind) if pa.types.is_struct(kind) else None
        if rest:
            return (head, *rest)
    return None


def type_at(place: Place, schema: pa.Schema) -> pa.DataType:
    """The type of the column at a place."""
    kind = schema.field(place[0]).type
    for name in place[1:]:
        kind = kind.field(name).type
    return kind


def values_at(place: Place, batch: pa.RecordBatch) -> pa.Array:
    """The values of the column at a place."""
    array = batch.column(place[0])
    return pc.struct_field(array, list(place[1:])) if len(place) > 1 else array


def pick(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column in a JSON object; ``MISSING`` if the object lacks it."""
    found = values.get(name, MISSING)
    if found is not MISSING:
        return found
    if not name.isascii():
        own = own_name(name, values)
        if own is not None:
            return values[own]
    head, dot, rest = name.partition(".")
    while dot:
        inner = values.get(head, MISSING)
        if isinstance(inner, Mapping) and (found := pick(inner, rest)) is not MISSING:
            return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def require(names: Sequence[str], exists: Callable[[str], bool], present: Sequence[str], option: str) -> None:
    """Raises InputError that lists the present columns and the option to set if one of ``names`` does not exist."""
    for name in names:
        if not exists(name):
            shown = ", ".join(map(repr, present[:MAX_SHOWN])) or "none"
            more = f" and {len(present) - MAX_SHOWN} more" if len(present) > MAX_SHOWN else ""
            raise InputError(f"no column {name!r}; it has {shown}{more} (set {option})")
