"""The destinations of ``kosbert-ray load``. To add one, write a module with a function ``open`` and list it here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kosbert_ray.errors import UsageError

if TYPE_CHECKING:
    from kosbert_ray.outputs.load.base import Destination, Source

# Modules of this package by the scheme of an address.
DESTINATIONS = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "qdrant": "qdrant",
    "lancedb": "lance_db",
}


def open_destination(address: str, source: Source) -> Destination:
    """Opens a destination.

    Raises:
        UsageError: no destination has such an address, or its library is not installed.
        StorageError: it cannot be reached.
    """
    scheme = address.partition(":")[0]
    if scheme not in DESTINATIONS:
        known = ", ".join(name for name in DESTINATIONS if name != "postgres")
        raise UsageError(f"{address}: no destination; addresses begin with one of {known}")
    module = importlib.import_module(f"kosbert_ray.outputs.load.{DESTINATIONS[scheme]}")
    destination: Destination = module.open(address, source)
    return destination
