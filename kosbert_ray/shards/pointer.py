"""_CURRENT: a file that names the current output among several in one folder, replaced atomically."""

from __future__ import annotations

import json

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage

POINTER_FILE = "_CURRENT"


def current(folder: Storage) -> str | None:
    """Returns the name of the folder's current output; None if the folder has no pointer.

    Raises:
        StorageError: the pointer is broken.
    """
    try:
        name = json.loads(folder.read(POINTER_FILE))["output"]
        if not isinstance(name, str) or not name.strip(".") or "/" in name:
            raise ValueError(name)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{folder.url(POINTER_FILE)}: names no output; run kosbert-ray promote to replace it") from error
    return name


def point(folder: Storage, name: str, run: str) -> None:
    """Makes ``name`` the folder's current output and records the run that completed it."""
    folder.write_atomic(POINTER_FILE, json.dumps({"output": name, "run": run}).encode())
