"""Outputs beside each other, as when a model gives way to another: making the next, and making it the one to read."""

from __future__ import annotations

import contextlib
from typing import Any

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, StorageError, UsageError
from kosbert_ray.job import job_of_output, open_output
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.pointer import current, point
from kosbert_ray.storage import Storage, StorageOptions

# Of an output's job, what its successor takes over: all but how it is computed.
SAME = ("model", "input", "slice", "output", "dedup", "on_bad_row", "max_rejected")


def split(path: str) -> tuple[str, str]:
    """The folder of an output and its name in it; raises UsageError if the path has but one part."""
    folder, slash, name = path.rstrip("/").rpartition("/")
    if not slash and not name.strip("."):
        raise UsageError(f"{path}: give the output's own folder, such as vectors/v2")
    return folder or ("/" if slash else "."), name


def successor(path: str, options: StorageOptions = StorageOptions()) -> dict[str, Any]:
    """The job of the output that is current in the folder of ``path``, as far as the next output there shares it.

    Args:
        path: where the next output goes.
        options: how to reach it.

    Returns:
        What a job file would hold.

    Raises:
        UsageError: the folder has no current output, or is one.
    """
    folder, _ = split(path)
    storage = Storage(folder, options)
    if Ledger(storage).job():
        raise UsageError(
            f"--into: {storage.address} is an output itself, and who reads all below it would read both; choose a folder "
            "beside it"
        )
    old = current(storage)
    if old is None:
        raise UsageError(
            f"--into: {storage.address} has no current output to take the job from; make one current "
            "(kosbert-ray promote), or name INPUT and OUTPUT"
        )
    config = JobConfig.model_validate({"output": {"path": f"{folder}/{old}"}})
    job, _ = job_of_output(config, Ledger(Storage(config.output.path, options)))
    tree = job.model_dump(mode="json", include=set(SAME))
    tree["output"]["path"] = path
    return tree


def promote(config: JobConfig) -> tuple[str, str | None]:
    """Makes ``config.output.path`` the output that readers of its folder find.

    Returns:
        The address of the folder, and the name of the output that was current before.

    Raises:
        InputError: it is not complete.
    """
    folder, name = split(config.output.path)
    success = Ledger(open_output(config)).success()
    if success is None:
        raise InputError(f"{config.output.path}: not complete (no _SUCCESS); run kosbert-ray embed to its end first")
    storage = Storage(folder, config.storage.options())
    before = None
    with contextlib.suppress(StorageError):  # a broken pointer is replaced
        before = current(storage)
    point(storage, name, success["run"])
    return storage.address, before
