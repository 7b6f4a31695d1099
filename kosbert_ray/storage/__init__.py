"""Files on disk and in object stores.

:class:`Storage` opens a path or a URL (``/data/x``, ``s3://bucket/x``) with :class:`StorageOptions`. It lists, reads and
atomically writes files; every failure is a ``StorageError`` with a one-line message.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kosbert_ray.storage.options import FAIL_FAST, StorageOptions, is_url

if TYPE_CHECKING:
    from kosbert_ray.storage.disk import process_alive
    from kosbert_ray.storage.failures import storage_errors
    from kosbert_ray.storage.store import TMP_FOLDER, Storage
    from kosbert_ray.storage.walk import FileEntry, Survey

__all__ = [
    "FAIL_FAST",
    "TMP_FOLDER",
    "FileEntry",
    "Storage",
    "StorageOptions",
    "Survey",
    "is_url",
    "process_alive",
    "storage_errors",
]

# Loaded on first use: the options are read where fsspec is not needed, such as for --help.
HOMES = {
    "storage_errors": "failures",
    "TMP_FOLDER": "store",
    "Storage": "store",
    "process_alive": "disk",
    "FileEntry": "walk",
    "Survey": "walk",
}


def __getattr__(name: str) -> Any:
    """Imports fsspec when a folder is opened, and not before."""
    if name in HOMES:
        return getattr(import_module(f"kosbert_ray.storage.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
