"""Files on disk and in object stores.

:class:`Storage` opens a path or a URL (``/data/x``, ``s3://bucket/x``) with :class:`StorageOptions`. It lists, reads and
atomically writes files; every failure is a ``StorageError`` with a one-line message.
"""

from kosbert_ray.storage.disk import process_alive
from kosbert_ray.storage.failures import storage_errors
from kosbert_ray.storage.options import StorageOptions, is_url
from kosbert_ray.storage.store import TMP_FOLDER, Storage
from kosbert_ray.storage.walk import FileEntry, Survey

__all__ = ["TMP_FOLDER", "FileEntry", "Storage", "StorageOptions", "Survey", "is_url", "process_alive", "storage_errors"]
