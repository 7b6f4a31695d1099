"""Embeds a sample of an output's rows again, to check that the vectors are the model's for these texts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.errors import InputError, ModelError, StorageError
from kosbert_ray.job import long_text, token_pooling
from kosbert_ray.kept_texts import KeptTexts, chunk_texts
from kosbert_ray.outputs.input_check import InputPlan
from kosbert_ray.outputs.sample import Rows, draw
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, Kind
from kosbert_ray.vectors.similarity import COSINES
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.output import Output

AGREEMENT = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}

log = logging.getLogger(__name__)


def reembed(
    output: Output, receipts: list[Receipt], plan: InputPlan | None, sample: int, seed: int
) -> tuple[list[str], dict[str, float], int]:
    """Embeds rows again and compares their vectors with the stored ones.

    Args:
        output: the output.
        receipts: of its sound shards.
        plan: the input; needed if the texts are not among the output's columns.
        sample: how many rows.
        seed: of the sample.

    Returns:
        The problems, the smallest cosine of each column with vectors, and how many rows were sampled.

    Raises:
        InputError: the texts are neither in the output nor in an input.
        ModelError: the model cannot be loaded, or has changed since.
    """
    job = output.job
    kept = KeptTexts.of(job, output.record.kept, whole=job.long_text == "late")
    if kept is None:
        receipts = _with_input(output, receipts, plan)
    drawn = draw([receipt.rows for receipt in receipts], sample, seed)
    sampled = sum(map(len, drawn.values()))
    encoder = output.encoder()
    log.info(f"embedding {plural(sampled, 'row')} again ({encoder.precision} on {encoder.device})")
    problems: list[str] = []
    least: dict[str, float] = {}
    for place, rows in drawn.items():
        receipt = receipts[place]
        try:
            texts, chosen = _texts_and_rows(output, receipt, rows, kept or plan)
        except (StorageError, LookupError) as error:
            problems.append(error.args[0])
            continue
        again = _encode(encoder, output, texts, chosen)
        for item in (output.kind_format(kind) for kind in output.kinds):
            there, _ = item.matrix(chosen[item.column].combine_chunks())
            here, _ = item.matrix(item.array(again[item.kind]))
            cosines = COSINES[item.kind](there, here)
            least[item.column] = min(least.get(item.column, 1.0), float(cosines.min()))
            rounding = item.codec.agreement if isinstance(item, EmbeddingFormat) else 1.0
            off = int((cosines < min(AGREEMENT[receipt.precision], AGREEMENT[encoder.precision], rounding)).sum())
            if off:
                problems.append(
                    f"{receipt.shard}: {off:,} of {plural(len(rows), 'sampled vector', 'are')} not the model's "
                    f"(cosine {cosines.min():.4f} in {item.column})"
                )
    return problems, least, sampled


def _with_input(output: Output, receipts: list[Receipt], plan: InputPlan | None) -> list[Receipt]:
    """Returns the receipts of files that are still in the input."""
    if plan is None:
        texts = "whole texts" if output.job.long_text == "late" else "texts"
        raise InputError(f"{output.storage.url()}: the {texts} are not among its columns; give the input with --input")
    found = [receipt for receipt in receipts if receipt.file in plan.files]
    if len(found) < len(receipts):
        log.info(f"not sampling {plural(len(receipts) - len(found), 'shard')} of files that are no longer in the input")
    return found


def _texts_and_rows(
    output: Output, receipt: Receipt, rows: Rows, source: KeptTexts | InputPlan | None
) -> tuple[pa.Array, pa.Table]:
    """Reads rows of a shard and their texts, with ``long_text=late`` the whole ones; ``rows`` counts only rows that have a
    vector.

    Raises:
        LookupError: the input no longer has the texts.
        StorageError: the shard cannot be read.
    """
    with open_shard(output.storage, receipt.shard) as file:
        table = file.read()
    table = table.filter(table[output.formats[0].column].is_valid())
    chosen = table.take(pa.array(rows))
    if isinstance(source, KeptTexts):
        texts = source.read(chosen)
    else:
        assert source is not None
        texts = _input_texts(source, receipt, output)
        if output.job.chunked:  # a text's first chunk is in the shard if any of its chunks is
            rows = (np.cumsum(table["chunk"].to_numpy() == 0) - 1)[rows]
        texts = texts.take(pa.array(rows))
        if output.job.long_text == "chunk":
            texts = chunk_texts(texts, chosen)
    return texts, chosen


def _input_texts(plan: InputPlan, receipt: Receipt, output: Output) -> pa.Array | pa.ChunkedArray:
    """Reads the texts of a shard's rows from the input; raises LookupError if they are no longer there."""
    fragment = next((fragment for fragment in plan.fragments if fragment.id == receipt.fragment), None)
    table = None
    if fragment:
        _, table = next(plan.reader.slices(fragment, range(receipt.slice_index)), (None, None))
    if table is None or table.num_rows != receipt.input_rows:
        raise LookupError(f"{receipt.shard}: its texts are not in the input")
    table = table.filter(table[REASON].is_null())
    if receipt.rejected:  # some rows were read, but could not be encoded
        rejected = read_rejected(output.storage, receipt.shard)
        gone = {*rejected["row"].to_pylist(), *rejected["byte_offset"].to_pylist()}
        table = table.filter(pa.array([position not in gone for position in table[POSITION].to_pylist()], pa.bool_()))
    return table[TEXT]


def _encode(encoder: Encoder, output: Output, texts: pa.Array, rows: pa.Table) -> dict[Kind, Any]:
    """Returns the vectors of rows of a shard, of each kind of the output; see :func:`_texts_and_rows`.

    Raises:
        ModelError: a text cannot be encoded.
    """
    job, array = output.job, pa.array(texts.to_pylist(), pa.large_string())
    chunks = None
    if job.long_text in ("mean", "late"):
        sequences = long_text(job, encoder.spec)(encoder.tokenizer, array)
        tokens, chunks = sequences.tokens, sequences.chunks
    else:
        tokens = encoder.tokenizer(array)
    encoded = encoder.encode_tokens(tokens, kinds=output.kinds)
    for text, reason in encoded.failed.items():
        raise ModelError(f"text {text}: {reason}")
    found: dict[Kind, Any] = {}
    if DENSE in output.kinds:
        own = slice(None)
        if chunks:
            own = np.searchsorted(chunks.source, np.arange(len(array))) + rows["chunk"].to_numpy()
        found[DENSE] = encoded.vectors[own]
    pooling = token_pooling(job, encoder.spec)
    for kind, vectors in encoded.ragged.items():
        item = output.kind_format(kind)
        if isinstance(vectors, SparseVectors) and isinstance(item, SparseFormat):
            vectors = item.kept(vectors)
        if isinstance(vectors, TokenVectors) and pooling:
            vectors = pooling(vectors)
        found[kind] = vectors.take(encoded.rows)
    return found
