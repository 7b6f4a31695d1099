"""How far a job is, told by its output alone: from any machine, whether it runs or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import KosbertError
from kosbert_ray.job import job_of_output, list_input, open_output
from kosbert_ray.shards.lease import Holder, holders
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.totals import Totals


@dataclass(frozen=True)
class Status:
    """How far a job is.

    Attributes:
        output: the output directory.
        input: what is embedded.
        model: with which.
        state: "done", "running", or "stopped" before its end.
        holders: the runs that write to the output just now.
        totals: sums over what the receipts tell of the shards that are there.
        unbooked: shards whose receipts are not written yet.
        share: of the input's bytes that is committed; None where the input cannot be listed from here.
        run: sums over what the run has committed that writes to it.
        tokens_per_second: of the run that writes to it; None if none does.
        seconds_left: by that speed; None where it cannot be told.
        nodes: encoded tokens by host.
        notices: books of the output that cannot be read.
        skipped_files: files of the input that are no text shards, when it was completed.
    """

    output: str
    input: str
    model: str
    state: str
    holders: tuple[Holder, ...]
    totals: Totals
    unbooked: int
    share: float | None
    run: Totals
    tokens_per_second: float | None
    seconds_left: float | None
    nodes: dict[str, int]
    notices: tuple[str, ...] = ()
    skipped_files: int = 0


def status(config: JobConfig) -> Status:
    """Reads the books of ``config.output.path``: job.json, the receipts, the leases, and a listing of the shards.

    Raises:
        InputError: it is no output of ours.
        StorageError: the store refuses.
    """
    ledger = Ledger(open_output(config))
    job, _ = job_of_output(config, ledger)
    shards = ledger.shards()
    receipts = [receipt for name, receipt in ledger.receipts().items() if name in shards]
    totals = Totals.of(receipts)
    at_work = tuple(holders(ledger.storage))
    success = ledger.success()
    done = success is not None
    if done:
        ledger.held()  # for its notice of missing shards
    total_bytes = None
    with contextlib.suppress(KosbertError):
        total_bytes = list_input(job).size
    share = None if total_bytes is None else min(1.0, totals.input_bytes / max(1, total_bytes))
    run = Totals.of(ledger.receipts_of(at_work[-1].run)) if at_work else Totals()
    seconds = at_work[-1].age if at_work else 0.0
    nodes: dict[str, int] = {}
    for receipt in receipts:
        nodes[receipt.node] = nodes.get(receipt.node, 0) + receipt.encoded_tokens
    left = None
    if total_bytes is not None and run.input_bytes:
        left = totals.tokens_left(total_bytes) / (run.tokens / seconds) if run.tokens else None
    return Status(
        output=ledger.storage.address,
        input=job.input.path,
        model=job.model.name,
        state="running" if at_work else "done" if done else "stopped",
        holders=at_work,
        totals=totals,
        unbooked=len(shards) - len(receipts),
        share=1.0 if done else share,
        run=run,
        tokens_per_second=run.tokens / seconds if at_work and seconds else None,
        seconds_left=left,
        nodes=nodes,
        notices=tuple(ledger.notices),
        skipped_files=int((success or {}).get("skipped_files", 0)),
    )
