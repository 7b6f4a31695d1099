"""The table formats of ``kosbert-ray publish``. To add one, write a module with a function ``open`` and list it here."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from kosbert_ray.errors import UsageError

if TYPE_CHECKING:
    from kosbert_ray.outputs.publish.base import Publication, Table

# Modules of this package by the scheme of an address.
FORMATS = {
    "delta": "delta",
    "iceberg": "iceberg",
}


def format_of(address: str) -> ModuleType:
    """The module of an address.

    Raises:
        UsageError: no format has such an address, or its library is not installed.
    """
    scheme = address.partition(":")[0]
    if scheme not in FORMATS:
        raise UsageError(f"{address!r} is no table; write delta or iceberg://CATALOG/NAMESPACE.TABLE")
    return importlib.import_module(f"kosbert_ray.outputs.publish.{FORMATS[scheme]}")


def require_table(address: str) -> None:
    """Checks an address before a run.

    Raises:
        UsageError: no format has such an address, its library is not installed, or its catalog is not configured.
        StorageError: the catalog cannot be reached.
    """
    format_of(address).require_reachable(address)


def open_table(address: str, publication: Publication) -> Table:
    """Opens a table; raises UsageError like :func:`format_of`, and StorageError if it cannot be reached."""
    table: Table = format_of(address).open(address, publication)
    return table
