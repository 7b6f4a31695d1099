"""What is remembered of a committed slice. A receipt can be told again from the shard's footer, but for the timings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

# What differs from run to run of the same slice, or came after version 0.1.0, and so is not in its shard.
UNSTABLE = (
    "output_bytes",
    "node",
    "finished_at",
    "batches",
    "computed_tokens",
    "wait_seconds",
    "read_seconds",
    "tokenize_seconds",
    "encode_seconds",
    "write_seconds",
    "fingerprint",  # a footer has it beside the receipt's own fields
    "unknown_tokens",
)
ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


@dataclass(frozen=True, slots=True)  # a job has one for each of its slices, perhaps a million
class Receipt:
    """One committed slice.

    Attributes:
        shard: output name; empty for a slice without rows, which has no file.
        file: input file, below the input folder.
        version: etag or mtime of it.
        fragment: id of the fragment (file, version and range).
        fragment_index: which fragment of the file.
        slice_index: which slice of the fragment.
        last: whether it is the fragment's last.
        rows: rows with a vector, all in the shard: texts, or chunks of them.
        rejected: rows in ``_kosbert/rejected``; also in the shard, with a null vector, if the job keeps them there.
        distinct: distinct texts among ``rows``.
        tokens: tokens of all rows, special ones included.
        encoded_tokens: tokens that went through the model (duplicates once).
        truncated: rows longer than max_seq_length of which something was cut off.
        dropped_tokens: tokens cut off from them.
        input_bytes: bytes of the stored file it took to read the slice.
        output_bytes: bytes of the shard.
        embedding_xxh128: of the values of the shard's vectors, in its order, as stored; empty without a shard.
        precision, attention, device: how it was computed.
        input_rows: rows of the input in the slice; those that are not rejected have one row in the shard each, or, where
            long texts are cut into chunks, one for each chunk.
        split: texts that were cut into chunks.
        node: host of the encoder.
        finished_at: when it was committed, in seconds since 1970; 0 if that is not known.
        batches: how many went through the model.
        computed_tokens: tokens in them, what they were padded with included.
        wait_seconds: how long the encoder had nothing to do before the slice.
        read_seconds, tokenize_seconds, encode_seconds, write_seconds: wall time of each stage.
        fingerprint: digest of the job it belongs to; empty in receipts of 0.1.0.
        cut: the reader's version and limits that its fragment was cut by; empty for 0.1.0's.
        unknown_tokens: of ``encoded_tokens``, those that are not in the model's vocabulary.
    """

    shard: str
    file: str
    version: str
    fragment: str
    fragment_index: int
    slice_index: int
    last: bool
    rows: int
    rejected: int
    distinct: int
    tokens: int
    encoded_tokens: int
    truncated: int
    dropped_tokens: int
    input_bytes: int
    output_bytes: int
    embedding_xxh128: str
    precision: str
    attention: str
    device: str
    input_rows: int = 0
    split: int = 0
    node: str = ""
    finished_at: float = 0.0
    batches: int = 0
    computed_tokens: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    fingerprint: str = ""
    cut: str = ""
    unknown_tokens: int = 0

    @staticmethod
    def begun(**facts: Any) -> Receipt:
        """The receipt of a slice that was read and nothing more; later stages fill in the rest.

        Args:
            facts: the fields known so far.
        """
        unknown: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False}
        return Receipt(**({item.name: unknown[str(item.type)] for item in fields(Receipt)} | facts))

    def footer(self) -> dict[str, Any]:
        """The part that is the same whenever and wherever the slice is done on such hardware."""
        said = {name: value for name, value in asdict(self).items() if name not in UNSTABLE}
        if not self.cut:  # the footers of 0.1.0 do not have it
            del said["cut"]
        return said

    @staticmethod
    def from_footer(footer: dict[str, Any], output_bytes: int) -> Receipt:
        """The receipt of a shard whose own receipt was lost; raises TypeError if the footer lacks a field."""
        known = {field.name for field in fields(Receipt)}
        return Receipt(**{name: value for name, value in footer.items() if name in known}, output_bytes=output_bytes)


SCHEMA = pa.schema([pa.field(field.name, ARROW_TYPES[str(field.type)], nullable=False) for field in fields(Receipt)])


def to_table(receipts: list[Receipt]) -> pa.Table:
    """Receipts as an Arrow table of ``SCHEMA``."""
    return pa.Table.from_pylist([asdict(receipt) for receipt in receipts], SCHEMA)


def from_table(table: pa.Table) -> list[Receipt]:
    """Receipts out of a table of ``SCHEMA``; of an earlier version's, what it did not know is nothing."""
    return [Receipt(**{name: value for name, value in row.items() if value is not None}) for row in table.to_pylist()]
