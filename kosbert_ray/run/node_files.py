"""Files that each node writes once into its temporary folder, for all its processes to map into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import xxhash

from kosbert_ray.errors import InputError
from kosbert_ray.model.source import fill_once
from kosbert_ray.units import data_size

SEAL = "seal.json"  # the digest of each file
FILLS = 3  # attempts, while other processes of the node fill and check the same folder


def fill_node_folder(folder: Path, fill: Callable[[Path], None], option: str, size: int, remedy: str) -> None:
    """Fills a node's folder unless it is there and undamaged. One of several processes that ask at once fills it.

    Args:
        folder: the folder.
        fill: writes its files into an empty folder.
        option: the option that needs it, for messages.
        size: its bytes, for messages.
        remedy: what to do where there is no room.

    Raises:
        InputError: it cannot be written here.
    """

    def sealed(partial: Path) -> None:
        fill(partial)
        (partial / SEAL).write_text(json.dumps(_digests(partial)))

    try:
        for _ in range(FILLS):
            fill_once(folder, sealed)
            if _is_whole(folder):
                return
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError("it keeps changing after it was written")
    except OSError as error:
        raise InputError(
            f"{option} keeps {data_size(size)} at {folder} on each node, which cannot be written "
            f"({error.strerror or error}); make room or {remedy}"
        ) from error


def _is_whole(folder: Path) -> bool:
    """True if the folder belongs to this user and holds what its seal says."""
    try:
        return folder.stat().st_uid == os.getuid() and json.loads((folder / SEAL).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: _digest(path) for path in folder.iterdir() if path.name != SEAL}


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
