"""The record of a committed slice. All of it but timings and placement can be restored from the shard's footer."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

import pyarrow as pa

# Fields left out of footers: they differ between runs of the same slice, or are newer than version 0.1.0.
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
    "fingerprint",  # a key of the footer itself
    "unknown_tokens",
)
STAGES = ("read", "tokenize", "encode", "write")  # each has its ``<stage>_seconds``
OPTIONAL = ("cut", "reused", "empty_sparse")  # absent from footers where they are empty or 0, as in version 0.1.0
ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


@dataclass(frozen=True, slots=True)  # slots: a job may have a million receipts
class Receipt:
    """One committed slice.

    Attributes:
        shard: name of the output file; empty for a slice without rows, which has no file.
        file: input file, relative to the input folder.
        version: etag or modification time of the input file.
        fragment: id of the fragment (file, version and range).
        fragment_index: index of the fragment in its file.
        slice_index: index of the slice in its fragment.
        last: True for the last slice of its fragment.
        rows: rows of the shard that have a vector; each is a text or a chunk of one.
        rejected: rejected rows, all listed in ``_kosbert/rejected``. The shard has them too, with a null vector, if the
            job keeps them there.
        distinct: distinct texts in ``rows``.
        tokens: tokens of all rows, including special ones.
        encoded_tokens: tokens without those of duplicates.
        truncated: rows truncated to max_seq_length.
        dropped_tokens: tokens cut off from truncated rows.
        input_bytes: bytes of the stored file that were read for the slice.
        output_bytes: size of the shard.
        embedding_xxh128: checksum of the stored vector values, in the shard's order; empty without a shard.
        precision, attention, device: how the vectors were computed.
        input_rows: input rows in the slice. Each row that is not rejected has one row in the shard, or one per chunk if
            its text was split.
        split: texts that were split into chunks.
        node: host name of the encoder.
        finished_at: Unix time of the commit in seconds; 0 if unknown.
        batches: batches passed to the model.
        computed_tokens: tokens in these batches, including padding.
        wait_seconds: time that the encoder was idle before the slice.
        read_seconds, tokenize_seconds, encode_seconds, write_seconds: wall time of each stage.
        fingerprint: digest of the job; empty in receipts of version 0.1.0.
        cut: version and limits of the reader that cut the fragment; empty for version 0.1.0.
        unknown_tokens: those of ``encoded_tokens`` that are missing from the model's vocabulary.
        reused: distinct texts whose vectors were taken from an older output.
        empty_sparse: those of ``rows`` whose sparse vector has no value.
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
    reused: int = 0
    empty_sparse: int = 0

    @staticmethod
    def unfinished(**facts: Any) -> Receipt:
        """Creates the receipt of a slice that was only read; later stages fill in the rest.

        Args:
            facts: the fields known so far.
        """
        return Receipt(**UNKNOWN | facts)

    def shard_rows(self, nullable: bool) -> int:
        """Returns the number of rows in the shard.

        Args:
            nullable: whether rejected rows are kept there, with a null vector.
        """
        return self.rows + (self.rejected if nullable else 0)

    def footer(self) -> dict[str, Any]:
        """Returns the fields stored in the shard's footer: those that any run of the slice on such hardware repeats."""
        footer = {name: getattr(self, name) for name in STABLE}
        return {name: value for name, value in footer.items() if value or name not in OPTIONAL}

    @staticmethod
    def from_footer(footer: dict[str, Any], output_bytes: int) -> Receipt:
        """Restores the receipt of a shard from its footer; raises TypeError if the footer lacks a field."""
        names = {field.name for field in fields(Receipt)}
        return Receipt(**{name: value for name, value in footer.items() if name in names}, output_bytes=output_bytes)


STABLE = [field.name for field in fields(Receipt) if field.name not in UNSTABLE]
SCHEMA = pa.schema([pa.field(field.name, ARROW_TYPES[str(field.type)], nullable=False) for field in fields(Receipt)])
UNKNOWN: dict[str, Any] = {
    field.name: {"str": "", "int": 0, "float": 0.0, "bool": False}[str(field.type)] for field in fields(Receipt)
}
REQUIRED = {field.name for field in fields(Receipt) if field.default is MISSING}


def to_table(receipts: list[Receipt]) -> pa.Table:
    """Converts receipts to an Arrow table of ``SCHEMA``, without ``empty_sparse`` if no sparse vector is empty."""
    empty = any(receipt.empty_sparse for receipt in receipts)
    names = [name for name in SCHEMA.names if empty or name != "empty_sparse"]
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return pa.table({name: [getattr(receipt, name) for receipt in receipts] for name in names}, schema)


def from_table(table: pa.Table) -> list[Receipt]:
    """Converts an Arrow table to receipts. Fields that an older version did not write get their default.

    Raises:
        ValueError: the table holds no receipts, or a value does not fit its field.
    """
    if missing := REQUIRED - {*table.column_names}:
        raise ValueError(f"not a table of receipts: column {min(missing)} is missing")
    names = [name for name in SCHEMA.names if name in table.column_names]
    table = table.select(names).cast(pa.schema([SCHEMA.field(name).with_nullable(True) for name in names]))
    if names == SCHEMA.names[: len(names)] and not any(column.null_count for column in table.columns):
        return [Receipt(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    return [Receipt(**{name: value for name, value in row.items() if value is not None}) for row in table.to_pylist()]
