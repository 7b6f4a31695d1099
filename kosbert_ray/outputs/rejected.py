"""The rows that were rejected, with their lines in the input where it is still there."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kosbert_ray.errors import KosbertError
from kosbert_ray.job import list_input
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.storage import Storage

BLOCK_BYTES = 2**20  # of the input, to count lines in
MAX_COUNTED_BYTES = 2**30  # further into a file, the byte has to do
# What helps against a reason, by its beginning.
HINTS = {
    "null text": "on_bad_row=null_vector keeps these rows, with a null vector",
    "empty text": "on_bad_row=null_vector keeps these rows, with a null vector",
    "invalid text": "input.encoding sets the encoding of the files, such as cp949",
    "bad CSV": "input.delimiter, input.quoting and input.newlines_in_values say how the files are written",
}


@dataclass(frozen=True)
class RejectedRow:
    """A rejected row.

    Attributes:
        file: the input file.
        row: its number in the file, from 0; None in files of lines that are not compressed.
        byte_offset: where its line begins in such a file; None in others.
        line: the number of that line, from 1; None if the file is no longer there as it was embedded, and beyond its first
            GiB.
        reason: why it was rejected.
        text: its text, as far as it could be read.
    """

    file: str
    row: int | None
    byte_offset: int | None
    line: int | None
    reason: str
    text: str | None


@dataclass(frozen=True)
class Rejected:
    """The rejected rows of an output.

    Attributes:
        output: address of the output.
        rows: how many there are.
        shown: the first of them.
        reasons: the number of those by reason.
        hints: what helps, by reason.
    """

    output: str
    rows: int
    shown: tuple[RejectedRow, ...]
    reasons: Mapping[str, int]
    hints: Mapping[str, str]


def rejected(output: Output, limit: int) -> Rejected:
    """Reads the rejected rows of an output, in the order of the input.

    Args:
        output: the output.
        limit: the most rows to read.

    Raises:
        StorageError: a file of rejected rows is missing or broken.
    """
    receipts = [receipt for receipt in output.receipts if receipt.rejected]
    found: list[tuple[Receipt, dict[str, object]]] = []
    for receipt in receipts:
        if len(found) >= limit:
            break
        rows = read_rejected(output.storage, receipt.shard).drop_columns(["slice_row"]).to_pylist()
        found += [(receipt, row) for row in rows[: limit - len(found)]]
    lines = _lines(output, found)
    shown = tuple(
        RejectedRow(line=lines.get((str(row["file"]), row["byte_offset"])), **row)  # type: ignore[arg-type]
        for _, row in found
    )
    reasons = Counter(row.reason for row in shown)
    hints = {reason: hint for reason in reasons for beginning, hint in HINTS.items() if reason.startswith(beginning)}
    return Rejected(
        output.storage.address, sum(receipt.rejected for receipt in receipts), shown, dict(reasons.most_common()), hints
    )


def _lines(output: Output, found: Sequence[tuple[Receipt, dict[str, object]]]) -> dict[tuple[str, object], int]:
    """Line numbers by file and byte offset, of files that are still there as they were embedded."""
    offsets: dict[tuple[str, str], set[int]] = defaultdict(set)
    for receipt, row in found:
        if isinstance(offset := row["byte_offset"], int):
            offsets[receipt.file, receipt.version].add(offset)
    if not offsets:
        return {}
    lines: dict[tuple[str, object], int] = {}
    with contextlib.suppress(KosbertError):  # the input is out of reach from here
        corpus = list_input(output.job)
        for file in corpus.files:
            with contextlib.suppress(KosbertError):
                at = sorted(at for at in offsets.get((file.name, file.version), ()) if at <= MAX_COUNTED_BYTES)
                numbers = _line_numbers(corpus.storage, file.name, at)
                lines |= {(file.name, offset): number for offset, number in zip(at, numbers, strict=False)}
    return lines


def _line_numbers(storage: Storage, name: str, offsets: Sequence[int]) -> Iterator[int]:
    """The number of the line, from 1, that begins at each of these sorted byte offsets."""
    if not offsets:
        return
    waiting = list(offsets)
    position, line = 0, 1
    with storage.open(name) as handle:
        while block := handle.read(BLOCK_BYTES):
            while waiting and waiting[0] <= position + len(block):
                yield line + block.count(b"\n", 0, waiting.pop(0) - position)
            if not waiting:
                return
            position, line = position + len(block), line + block.count(b"\n")
