"""Finds a column by the name a user gives: as it is, in another Unicode form, or inside a struct (``doc.text``).

macOS and some editors write Korean names decomposed (NFD); they look the same as composed ones and are the same name here.
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

Place = tuple[str, ...]  # a column's own name, and those of the fields on the way down to a value


def composed(name: str) -> str:
    """The name in one Unicode form."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def own_name(name: str, names: Iterable[str]) -> str | None:
    """How a name is spelled among ``names``; None if it is not there."""
    names = list(names)
    if name in names:
        return name
    wanted = composed(name)
    return next((other for other in names if not other.isascii() and composed(other) == wanted), None)


def locate(name: str, schema: pa.Schema | pa.StructType) -> Place | None:
    """Where a column stands in a schema; None if nowhere.

    Raises:
        InputError: the name stands twice.
    """
    names = [field.name for field in schema]
    own = own_name(name, names)
    if own is not None:
        if names.count(own) > 1:
            raise InputError(f"column {own!r} stands {names.count(own)} times; give each its own name")
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
    """The value of a column in a JSON object; ``MISSING`` if it has none."""
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


def require(names: Sequence[str], there: Callable[[str], bool], present: Sequence[str], option: str) -> None:
    """Raises InputError with the columns there are if one of ``names`` is not among them."""
    for name in names:
        if not there(name):
            shown = ", ".join(map(repr, present[:MAX_SHOWN])) or "none"
            more = f" and {len(present) - MAX_SHOWN} more" if len(present) > MAX_SHOWN else ""
            raise InputError(f"no column {name!r}; it has {shown}{more} (set {option})")
