"""A sample of an output's rows, embedded again and compared: are these the vectors of these texts by this model?"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.config import CHUNK_TEXT, JobConfig
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.job import encoder_options, long_text, own_model
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.storage import Storage

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder

AGREEMENT = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}


@dataclass(frozen=True)
class Reading:
    """The input as the job reads it: its reader and its plan, and why files of it cannot be read."""

    reader: FragmentReader
    fragments: tuple[Fragment, ...]
    files: frozenset[str]  # names
    failed: tuple[str, ...] = ()


def resample(
    job: JobConfig,
    said: Mapping[str, Any],
    output: Storage,
    receipts: list[Receipt],
    format: EmbeddingFormat,
    reading: Reading | None,
    sample: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[list[str], float, int]:
    """Embeds rows again.

    Args:
        job: the output's job.
        said: the content of its job.json.
        output: the output directory.
        receipts: of its shards that are whole.
        format: how its vectors are stored.
        reading: the input; needed if the texts are not among the output's columns.
        sample: how many rows.
        seed: which ones.
        say: takes a line for the user.

    Returns:
        Problems, the least cosine, and how many rows there were to sample.

    Raises:
        InputError: the texts are nowhere to be had.
        ModelError: the model cannot be loaded, or is no longer the one that the output was made by.
    """
    from kosbert_ray.encoder.encoder import Encoder

    kept = CHUNK_TEXT in job.columns() or {*job.input.row_text().columns} <= {*job.input.keep}
    if not kept and reading is None:
        raise InputError(f"{output.url()}: the texts are not among its columns; say where they are with --input")
    if reading is not None and not kept:
        there = [receipt for receipt in receipts if receipt.file in reading.files]
        if len(there) < len(receipts):
            say(f"{len(receipts) - len(there):,} shards of files that are gone from the input are not sampled")
        receipts = there
    total = sum(receipt.rows for receipt in receipts)
    chosen = sorted(random.Random(seed).sample(range(total), min(sample, total)))
    encoder = Encoder(own_model(job, said, output), encoder_options(job))
    say(f"embedding {len(chosen):,} rows again ({encoder.precision} on {encoder.device})")
    problems: list[str] = []
    least = 1.0
    first = 0
    for receipt in receipts:
        rows = [row - first for row in chosen if first <= row < first + receipt.rows]
        first += receipt.rows
        if not rows:
            continue
        table = pq.read_table(pa.BufferReader(output.read(receipt.shard)))
        table = table.filter(table[format.column].is_valid())
        try:
            texts = _kept(table, job) if kept else _texts(reading, receipt, output)
        except StorageError as error:
            problems.append(str(error))
            continue
        if texts is None:
            problems.append(f"{receipt.shard}: its texts are not in the input")
            continue
        if job.long_text == "chunk" and not kept:  # whose first chunk is there if any is
            texts = texts.take(np.cumsum(table["chunk"].to_numpy() == 0) - 1)
        chosen_texts = texts.take(rows).to_pylist()
        if job.long_text == "chunk" and CHUNK_TEXT not in table.column_names:
            places = table.select(["chunk_start", "chunk_end"]).take(rows).to_pylist()
            chosen_texts = [
                text[place["chunk_start"] : place["chunk_end"]] for text, place in zip(chosen_texts, places, strict=True)
            ]
        stored, _ = format.matrix(table[format.column].take(rows).combine_chunks())
        anew, _ = format.matrix(format.array(_encoded(encoder, job, chosen_texts)))
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(anew, axis=1)
        cosines = (stored * anew).sum(axis=1) / np.where(lengths == 0, 1, lengths)
        least = min(least, float(cosines.min()))
        limit = min(AGREEMENT[receipt.precision], AGREEMENT[encoder.precision], format.codec.agreement)
        off = int((cosines < limit).sum())
        if off:
            problems.append(
                f"{receipt.shard}: {off:,} of {len(rows):,} sampled vectors are not the model's "
                f"(cosine {cosines.min():.4f})"
            )
    return problems, least, len(chosen)


def _kept(table: pa.Table, job: JobConfig) -> pa.Array | pa.ChunkedArray:
    if CHUNK_TEXT in table.column_names:
        return table[CHUNK_TEXT]
    source = job.input.row_text()
    return source.normalized(source.join({name: table[name].combine_chunks() for name in source.columns}))


def _encoded(encoder: Encoder, job: JobConfig, texts: list[str]) -> npt.NDArray[np.float32]:
    array = pa.array(texts, pa.large_string())
    if job.long_text != "mean":
        return encoder.encode(array)
    found = long_text(job, encoder.spec)(encoder.tokenizer, array)
    return encoder.encode_tokens(found.tokens).vectors


def _texts(reading: Reading | None, receipt: Receipt, output: Storage) -> pa.Array | None:
    """The texts of a shard's rows, from the input; None if it holds them no more."""
    fragments = {fragment.id: fragment for fragment in reading.fragments} if reading else {}
    if reading is None or receipt.fragment not in fragments:
        return None
    _, table = next(reading.reader.slices(fragments[receipt.fragment], range(receipt.slice_index)), (None, None))
    if table is None or table.num_rows != receipt.input_rows:
        return None
    table = table.filter(table[REASON].is_null())
    if receipt.rejected:  # some were good to read and failed only later
        rejected = read_rejected(output, receipt.shard)
        gone = {*rejected["row"].to_pylist(), *rejected["byte_offset"].to_pylist()}
        table = table.filter(pa.array([position not in gone for position in table[POSITION].to_pylist()], pa.bool_()))
    return table[TEXT]
