"""The progress of a job, read from its output alone: on any machine, whether or not the job is running."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from kosbert_ray.errors import KosbertError
from kosbert_ray.job import list_input
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.lease import Holder, holders
from kosbert_ray.shards.ledger import RUNS_FOLDER
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.totals import Totals
from kosbert_ray.vectors.kinds import Kind


@dataclass(frozen=True)
class Status:
    """The progress of a job.

    Attributes:
        output: the output directory.
        input: the input.
        model: the model's name.
        kinds: the kinds of vectors.
        state: "done", "running", or "stopped" if the job is not complete and no run is writing to the output.
        holders: the runs that are writing to the output.
        totals: sums over the shards in the output.
        share: the part of the input's bytes that is committed; None if neither a run tells it nor the input can be listed.
        run: sums over what the latest running run has committed.
        tokens_per_second: of that run, since it began its first slice; None if nothing is running or committed.
        seconds_left: estimate from that rate; None if there is none.
        nodes: encoded tokens by host.
        notices: files of the ledger that cannot be read, and missing shards.
        skipped_files: files of the input with an unsupported extension, when the output was completed.
        failed_files: files of the input that the latest run could not read, if it did not complete the output.
        doing: what the latest running run waits for, by its last heartbeat.
        finished_at: when the run that completed the output made its last commit, in Unix seconds; None if it made none.
        finished_seconds: how long that run took.
        finished_rows: rows that it committed.
        finished_rows_per_second: without the start of Ray and of the model; None if it is unknown.
        tables: the tables as which the output is published, and whether each shows its latest complete run.
    """

    output: str
    input: str
    model: str
    kinds: tuple[Kind, ...]
    state: str
    holders: tuple[Holder, ...]
    totals: Totals
    share: float | None
    run: Totals
    tokens_per_second: float | None
    seconds_left: float | None
    nodes: dict[str, int]
    notices: tuple[str, ...] = ()
    skipped_files: int = 0
    failed_files: int = 0
    doing: str = ""
    finished_at: float | None = None
    finished_seconds: float | None = None
    finished_rows: int = 0
    finished_rows_per_second: float | None = None
    tables: dict[str, bool] = field(default_factory=dict)


def status(output: Output) -> Status:
    """Reads the progress of a job.

    Raises:
        StorageError: the store cannot be accessed.
    """
    running = tuple(holders(output.storage))
    total_bytes = None
    with contextlib.suppress(KosbertError):
        total_bytes = list_input(output.job).size
    share = None if total_bytes is None else min(1.0, output.totals.input_bytes / max(1, total_bytes))
    receipts = output.ledger.receipts_of(running[-1].run) if running else []
    rate = _rate(receipts, running[-1].age) if running else None
    left = output.totals.tokens_left(total_bytes) / rate if rate and total_bytes is not None else None
    live = running[-1].live if running else None
    if live:  # what the run itself shows
        rate, left = live.tokens_per_second or None, live.seconds_left
    success = output.success or {}
    finished = output.ledger.receipts_of(str(success["run"])) if "run" in success and not running else []
    nodes: dict[str, int] = {}
    for receipt in output.receipts:
        nodes[receipt.node] = nodes.get(receipt.node, 0) + receipt.encoded_tokens
    return Status(
        output=output.storage.address,
        input=output.job.input.path,
        model=output.job.model.name,
        kinds=output.kinds,
        state="running" if running else "done" if output.complete else "stopped",
        holders=running,
        totals=output.totals,
        share=live.share if live else 1.0 if output.complete else share,
        run=Totals.of(receipts),
        tokens_per_second=rate,
        seconds_left=left,
        nodes=nodes,
        notices=tuple(output.ledger.notices),
        skipped_files=int(success.get("skipped_files", 0)),
        failed_files=0 if output.complete or running else _failed_files(output),
        doing=live.doing if live else "",
        finished_at=max((receipt.finished_at for receipt in finished), default=0.0) or None,
        finished_seconds=float(success["seconds"]) if "seconds" in success and not running else None,
        finished_rows=sum(receipt.rows for receipt in finished),
        tables={item.table: item.run == success.get("run") for item in output.ledger.publications.tables},
        finished_rows_per_second=_per_second(sum(receipt.rows for receipt in finished), _seconds(finished)),
    )


def _rate(receipts: Sequence[Receipt], age: float) -> float | None:
    """Tokens per second of a run.

    Args:
        receipts: of the run.
        age: seconds since the run started, for receipts without times.
    """
    return _per_second(sum(receipt.tokens for receipt in receipts), _seconds(receipts) or age)


def _seconds(receipts: Sequence[Receipt]) -> float | None:
    """Seconds from the start of a run's first slice to its latest commit; None for receipts without times.

    The start of Ray and of the model is left out, as it does not recur. Both times come from the encoders' hosts, so a
    clock that differs here does not matter.
    """
    timed = [receipt for receipt in receipts if receipt.finished_at]
    if not timed:
        return None
    first = min(receipt.finished_at - receipt.encode_seconds - receipt.write_seconds for receipt in timed)
    return max(receipt.finished_at for receipt in timed) - first


def _per_second(amount: int, seconds: float | None) -> float | None:
    return amount / seconds if amount and seconds and seconds > 0 else None


def _failed_files(output: Output) -> int:
    """Number of input files that the latest run recorded as failed."""
    names = [entry.name for entry in output.storage.list(RUNS_FOLDER) if entry.name.endswith(".json")]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads(output.storage.read(max(names)))["failed_files"]) if names else 0
    return 0
