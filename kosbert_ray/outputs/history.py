"""The runs that have completed an output, and what each has added: told from their manifests."""

from __future__ import annotations

from dataclasses import dataclass

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.job import open_output
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt


@dataclass(frozen=True)
class Change:
    """What an output holds now and did not after an earlier run, and the names of the shards that are gone since."""

    added: list[Receipt]
    removed: list[str]


def runs(config: JobConfig) -> list[tuple[str, list[Receipt]]]:
    """Each run's id and the receipts of all that the output held when it ended, the latest last.

    Raises:
        InputError: no run has completed the output.
    """
    ledger, found = _runs(config)
    return [(run, _held(ledger, run)) for run in found]


def since(config: JobConfig, run: str | None) -> Change:
    """What the latest run's output holds beyond that of ``run``; all of it for None.

    Raises:
        InputError: no run has completed the output.
        UsageError: none of its runs is called that.
    """
    ledger, found = _runs(config)
    if run is not None and run not in found:
        raise UsageError(f"--since: no run {run!r}; there are {', '.join(found)}")
    now = _held(ledger, found[-1])
    before = {receipt.shard for receipt in _held(ledger, run)} if run else set()
    names = {receipt.shard for receipt in now}
    return Change([receipt for receipt in now if receipt.shard not in before], sorted(before - names))


def _runs(config: JobConfig) -> tuple[Ledger, list[str]]:
    """The output's books, and the ids of its runs, the latest last."""
    ledger = Ledger(open_output(config))
    found = ledger.manifests()
    if not found:
        raise InputError(f"{ledger.storage.url()}: no run has completed it (it has no manifest); run kosbert-ray embed")
    return ledger, found


def _held(ledger: Ledger, run: str) -> list[Receipt]:
    return [receipt for receipt in ledger.manifest_of(run) if receipt.shard]
