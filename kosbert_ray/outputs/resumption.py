"""The command that made an output, as its last run recorded it: ``kosbert-ray embed --resume OUTPUT``."""

from __future__ import annotations

import os
from typing import Any

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError
from kosbert_ray.job import open_output
from kosbert_ray.settings import with_variables, without
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.storage import is_url

# Options of a single run, which the next one does not repeat.
OF_ONE_RUN = ("limit", "max_minutes", "output.path")


def last_command(config: JobConfig) -> dict[str, Any]:
    """Returns the options of the last run of an output as a tree, with the absolute addresses of its input and its model.

    Args:
        config: the output's path, and how to access it.

    Raises:
        InputError: there is no output, or its runs were recorded by a version that does not tell the whole address.
        StorageError: the store cannot be accessed.
    """
    storage = open_output(config)
    record = Ledger(storage).last_run()
    if record is None:
        raise InputError(f"{storage.url()}: no run of kosbert-ray is recorded here; give INPUT and OUTPUT")
    tree = with_variables(without(record.get("said") or {}, OF_ONE_RUN))
    named = str((tree.get("input") or {}).get("path") or "")
    tree["input"] = {**(tree.get("input") or {}), "path": record.get("input_path") or _absolute(record, named)}
    if path := record.get("model_path"):
        tree["model"] = {**(tree.get("model") or {}), "name": path}
    if path := record.get("reuse_path"):
        tree["reuse"] = path
    return tree


def _absolute(record: dict[str, Any], named: str) -> str:
    """The input's address, as versions before 0.2.0 recorded it."""
    listed = str(record.get("input") or "")
    if is_url(named) or os.path.isabs(named) or named.startswith("bundled:"):
        return named
    if named and listed.endswith(os.path.normpath(named).lstrip("./")):  # a folder, which is listed as it is named
        return listed
    raise InputError(
        f"the last run recorded its input as {named!r}, without the folder that it was in; give INPUT and OUTPUT once"
    )
