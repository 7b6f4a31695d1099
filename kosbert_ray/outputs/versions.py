"""Several outputs in one folder, as when one model replaces another: start the next one, and make it current."""

from __future__ import annotations

import contextlib
from typing import Any

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, StorageError, UsageError
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.pointer import current, point
from kosbert_ray.storage import Storage

# Sections and options that the next output takes from the current one: all but how vectors are computed.
INHERITED = ("model", "input", "slice", "output", "dedup", "on_bad_row", "max_rejected")


def split(path: str) -> tuple[str, str]:
    """Splits an output's path into its folder and its name; raises UsageError if the path has no folder."""
    folder, slash, name = path.rstrip("/").rpartition("/")
    if not slash and not name.strip("."):
        raise UsageError(f"{path}: give the output's own folder, such as vectors/v2")
    return folder or ("/" if slash else "."), name


def successor(config: JobConfig, path: str) -> dict[str, Any]:
    """Returns the settings that a new output inherits from the current output of its folder.

    Args:
        config: how to access the folder.
        path: the new output.

    Returns:
        A tree of options, as in a job file.

    Raises:
        UsageError: the folder has no current output, or is an output itself.
    """
    folder, _ = split(path)
    storage = Storage(folder, config.storage.fail_fast())
    if Ledger(storage).job():
        raise UsageError(
            f"--into: {storage.address} is an output itself, and its readers would also read the new one below it; choose "
            "a folder beside it"
        )
    name = current(storage)
    if name is None:
        raise UsageError(
            f"--into: {storage.address} has no current output to take the job from; make one current "
            "(kosbert-ray promote), or give INPUT and OUTPUT"
        )
    place = config.output.model_copy(update={"path": f"{folder}/{name}"})
    job = Output(config.model_copy(update={"output": place})).job
    inherited = job.model_dump(mode="json", include=set(INHERITED))
    inherited["output"]["path"] = path
    return inherited


def promote(config: JobConfig) -> tuple[str, str | None]:
    """Makes ``config.output.path`` the current output of its folder.

    Returns:
        The folder's address, and the name of the output that was current before.

    Raises:
        InputError: there is no output, or it is not complete.
    """
    folder, name = split(config.output.path)
    success = Output(config).success
    if success is None:
        raise InputError(f"{config.output.path}: not complete (no _SUCCESS); run kosbert-ray embed to its end first")
    storage = Storage(folder, config.storage.fail_fast())
    before = None
    with contextlib.suppress(StorageError):  # a damaged pointer is replaced
        before = current(storage)
    point(storage, name, success["run"])
    return storage.address, before
