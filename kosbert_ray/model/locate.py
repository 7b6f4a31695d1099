"""Finds a model and completes it with what its folder only refers to: an adapter's base model, code elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.adapter import merge_adapter
from kosbert_ray.model.colbert_formats import convert_colbert
from kosbert_ray.model.shared_code import add_code
from kosbert_ray.model.source import Fetched, ModelSource, fetch

# Each takes a model's folder and returns a completed copy, or the folder itself if there is nothing to do.
STEPS: tuple[Callable[[Fetched, ModelSource], Fetched], ...] = (merge_adapter, convert_colbert, add_code)


def locate(source: ModelSource) -> Fetched:
    """Finds the model, downloading and completing it if needed.

    Raises:
        ModelError: there is no such model, it cannot be fetched, or something that it refers to is not available.
        StorageError: the object store refuses access.
    """
    found = fetch(source)
    try:
        for step in STEPS:
            found = step(found, source)
    except OSError as error:
        raise ModelError(f"{source.name}: cannot be copied to the cache ({first_line(error)})") from error
    return found


def locate_folder(source: ModelSource) -> Path:
    """Returns the model's folder on this machine. Raises as :func:`locate` does."""
    return locate(source).folder
