"""The file that says what an export is of: written first as incomplete, and last as complete."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from kosbert_ray.errors import StorageError, UsageError, first_line
from kosbert_ray.outputs.output import Output
from kosbert_ray.storage import Storage

OF_A_RUN = ("shards", "complete")  # what later exports of the same output may change


def described(output: Output) -> dict[str, Any]:
    """Describes the output that an export is made of, as plain values."""
    job = {"output": output.storage.address, "sha256": output.record.digest, "model": output.job.model.name}
    return {**job, "shards": output.shards()}


def require_same_export(target: Storage, name: str, content: dict[str, Any], other_files: Collection[str]) -> None:
    """Raises UsageError if the destination holds another export, or files of no export.

    Args:
        target: the destination.
        name: the sidecar's name there.
        content: the sidecar of this export.
        other_files: files there that this export does not write.
    """
    try:
        before = dict(json.loads(target.read(name)))
    except FileNotFoundError:
        before = {}
    except ValueError as error:
        raise StorageError(f"{target.url(name)}: cannot be read ({first_line(error)}); delete it") from error
    unlike = [key for key, value in before.items() if key not in OF_A_RUN and content.get(key) != value]
    if unlike or (other_files and not before):
        found = f"{min(unlike)} {before[min(unlike)]}" if unlike else f"{min(other_files)}, of no export of this output"
        raise UsageError(f"{target.address}: holds another export ({found}); choose another folder or delete it")


def write(target: Storage, name: str, content: dict[str, Any], complete: bool) -> None:
    """Writes the sidecar."""
    target.write_atomic(name, json.dumps(content | {"complete": complete}, ensure_ascii=False, indent=2).encode())
