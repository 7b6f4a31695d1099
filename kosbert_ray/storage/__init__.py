"""One way to reach files, on disk or in an object store, for every room of the house.

Comes in: a path or URL (``/data/x``, ``s3://bucket/x``) and :class:`StorageOptions`. Goes out: :class:`Storage`, a folder
one can list, read from, and write to atomically; whatever goes wrong there surfaces as one line (``StorageError``).
"""

from kosbert_ray.storage.failures import storage_errors
from kosbert_ray.storage.options import StorageOptions, is_url
from kosbert_ray.storage.store import TMP_FOLDER, Storage, process_alive
from kosbert_ray.storage.walk import FileEntry, Survey

__all__ = ["TMP_FOLDER", "FileEntry", "Storage", "StorageOptions", "Survey", "is_url", "process_alive", "storage_errors"]
