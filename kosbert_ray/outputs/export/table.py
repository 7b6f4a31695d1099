"""The destinations of ``kosbert-ray export``. To add one, write a module with a function ``export`` and list it here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosbert_ray.outputs.export.base import Exporter


def _module(name: str) -> Callable[[], Exporter]:
    """Loads a module of this package when its exporter is first needed: pyarrow takes time to import."""

    def load() -> Exporter:
        exporter: Exporter = importlib.import_module(f"kosbert_ray.outputs.export.{name}").export
        return exporter

    return load


EXPORTERS: dict[str, Callable[[], Exporter]] = {
    "npy": _module("npy"),
    "ndjson": _module("ndjson"),
    "parquet": _module("parquet"),
}
