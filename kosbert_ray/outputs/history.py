"""The runs that completed an output, and what each of them changed."""

from __future__ import annotations

from dataclasses import dataclass

from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt


@dataclass(frozen=True)
class Change:
    """Changes of an output since an earlier run.

    Attributes:
        added: receipts of the shards added.
        removed: names of the shards removed.
    """

    added: list[Receipt]
    removed: list[str]


def runs(output: Output) -> list[tuple[str, list[Receipt]]]:
    """Lists the runs that completed the output, oldest first: the run's id and the shards in the output when it ended.

    Raises:
        InputError: no run completed the output.
    """
    return [(run, _shards_after(output, run)) for run in _run_ids(output)]


def since(output: Output, run: str | None) -> Change:
    """Compares the output after its latest run with the output after ``run``; None for an empty output.

    Raises:
        InputError: no run completed the output.
        UsageError: there is no such run.
    """
    found = _run_ids(output)
    if run is not None and run not in found:
        raise UsageError(f"--since: no run {run!r}; there are {', '.join(found)}")
    now = _shards_after(output, found[-1])
    before = {receipt.shard for receipt in _shards_after(output, run)} if run else set()
    names = {receipt.shard for receipt in now}
    return Change([receipt for receipt in now if receipt.shard not in before], sorted(before - names))


def _run_ids(output: Output) -> list[str]:
    found = output.ledger.manifests()
    if not found:
        raise InputError(f"{output.storage.url()}: no run completed it (it has no manifest); run kosbert-ray embed")
    return found


def _shards_after(output: Output, run: str) -> list[Receipt]:
    return [receipt for receipt in output.ledger.manifest_of(run) if receipt.shard]
