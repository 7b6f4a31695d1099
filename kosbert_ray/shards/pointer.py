"""Which of several outputs in a folder is the one to read: a small file beside them that is replaced at once."""

from __future__ import annotations

import json

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage

POINTER_FILE = "_CURRENT"


def current(folder: Storage) -> str | None:
    """Name of the output that the folder's pointer names; None if it has none.

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
        raise StorageError(
            f"{folder.url(POINTER_FILE)}: names no output; run kosbert-ray promote, which replaces it"
        ) from error
    return name


def point(folder: Storage, name: str, run: str) -> None:
    """Makes the output ``name`` of the folder, as its run ``run`` left it, the one to read."""
    folder.write_atomic(POINTER_FILE, json.dumps({"output": name, "run": run}).encode())
