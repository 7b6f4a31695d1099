"""Embeds a sample of an output's rows again, to check that the vectors are the model's for these texts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.errors import InputError, ModelError, StorageError
from kosbert_ray.job import long_text, token_pooling
from kosbert_ray.kept_texts import KeptTexts, chunk_texts
from kosbert_ray.outputs.input_check import InputPlan
from kosbert_ray.outputs.sample import Rows, draw
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_rejected
from kosbert_ray.shards.vectors import open_shard
from kosbert_ray.units import plural
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_pooling import pooled
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.output import Output

AGREEMENT = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}

log = logging.getLogger(__name__)


def reembed(
    output: Output, receipts: list[Receipt], plan: InputPlan | None, sample: int, seed: int
) -> tuple[list[str], float, int]:
    """Embeds rows again and compares their vectors with the stored ones.

    Args:
        output: the output.
        receipts: of its sound shards.
        plan: the input; needed if the texts are not among the output's columns.
        sample: how many rows.
        seed: of the sample.

    Returns:
        The problems, the smallest cosine, and how many rows were sampled.

    Raises:
        InputError: the texts are neither in the output nor in an input.
        ModelError: the model cannot be loaded, or has changed since.
    """
    kept = KeptTexts.of(output.job, output.record.kept)
    if kept is None:
        receipts = _with_input(output, receipts, plan)
    drawn = draw([receipt.rows for receipt in receipts], sample, seed)
    sampled = sum(map(len, drawn.values()))
    encoder = output.encoder()
    log.info(f"embedding {plural(sampled, 'row')} again ({encoder.precision} on {encoder.device})")
    problems: list[str] = []
    least = 1.0
    for place, rows in drawn.items():
        receipt = receipts[place]
        try:
            texts, stored = _texts_and_vectors(output, receipt, rows, kept or plan)
        except (StorageError, LookupError) as error:
            problems.append(error.args[0])
            continue
        again = _encode(encoder, output, texts)
        for item, there in zip(_compared(output), stored, strict=True):
            here, _ = item.matrix(item.array(again[item.kind]))
            cosines = COSINES[item.kind](there, here)
            least = min(least, float(cosines.min()))
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
        raise InputError(f"{output.storage.url()}: the texts are not among its columns; give the input with --input")
    found = [receipt for receipt in receipts if receipt.file in plan.files]
    if len(found) < len(receipts):
        log.info(f"not sampling {plural(len(receipts) - len(found), 'shard')} of files that are no longer in the input")
    return found


def _compared(output: Output) -> list[VectorFormat]:
    """The formats of the columns that are compared: the first of each kind."""
    return [output.kind_format(kind) for kind in output.kinds]


def _texts_and_vectors(
    output: Output, receipt: Receipt, rows: Rows, source: KeptTexts | InputPlan | None
) -> tuple[list[str], list[Any]]:
    """Reads texts of rows of a shard, and of each kind their stored vectors; ``rows`` counts only rows that have one.

    Raises:
        LookupError: the input no longer has the texts.
        StorageError: the shard cannot be read.
    """
    compared = _compared(output)
    with open_shard(output.storage, receipt.shard) as file:
        table = file.read()
    table = table.filter(table[compared[0].column].is_valid())
    chosen = table.take(pa.array(rows))
    if isinstance(source, KeptTexts):
        texts = source.read(chosen)
    else:
        assert source is not None
        texts = _input_texts(source, receipt, output)
        if output.job.long_text == "chunk":  # a text's first chunk is in the shard if any of its chunks is
            sources = np.cumsum(table["chunk"].to_numpy() == 0) - 1
            texts = chunk_texts(texts.take(pa.array(sources[rows])), chosen)
        else:
            texts = texts.take(pa.array(rows))
    return texts.to_pylist(), [item.matrix(chosen[item.column].combine_chunks())[0] for item in compared]


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


def _encode(encoder: Encoder, output: Output, texts: list[str]) -> dict[Kind, Any]:
    """Returns the vectors of texts, of each kind of the output.

    Raises:
        ModelError: a text cannot be encoded.
    """
    job, array = output.job, pa.array(texts, pa.large_string())
    policy = job.long_text == "mean"
    tokens = long_text(job, encoder.spec)(encoder.tokenizer, array).tokens if policy else encoder.tokenizer(array)
    encoded = encoder.encode_tokens(tokens, kinds=output.kinds)
    for text, reason in encoded.failed.items():
        raise ModelError(f"text {text}: {reason}")
    found: dict[Kind, Any] = {DENSE: encoded.vectors} if DENSE in output.kinds else {}
    pooling = token_pooling(job, encoder.spec)
    for kind, vectors in encoded.ragged.items():
        if isinstance(vectors, SparseVectors):
            vectors = vectors.strongest(job.output.sparse_top_k, job.output.sparse_threshold)
        if isinstance(vectors, TokenVectors) and pooling:
            vectors = pooled(vectors, pooling.factor, pooling.protected, pooling.normalize)
        found[kind] = vectors.take(encoded.rows)
    return found


def _cosines(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.where(lengths == 0, 1, lengths), np.float32)


def _sparse_cosines(one: SparseVectors, other: SparseVectors) -> npt.NDArray[np.float32]:
    """Cosines of sparse vectors; 1 for two empty ones."""
    size = 1 + int(max([*one.indices, *other.indices, 0]))
    first, second = one.to_csr(size), other.to_csr(size)
    products = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    squares = (np.asarray(side.multiply(side).sum(axis=1)).ravel() for side in (first, second))
    lengths = np.sqrt(np.prod([*squares], axis=0))
    empty = (one.counts == 0) & (other.counts == 0)
    return np.where(empty, 1, products / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _token_cosines(one: TokenVectors, other: TokenVectors) -> npt.NDArray[np.float32]:
    """The mean cosine of a text's token vectors; of pooled ones, which have no order, of the nearest. 1 for none."""
    found = []
    for first, second in zip(one.to_list(), other.to_list(), strict=True):
        sides = [unit(side.astype(np.float32)) for side in (first, second)]
        if not len(first) or not len(second):
            found.append(float(len(first) == len(second)))
            continue
        cosines = sides[0] @ sides[1].T
        found.append(float(min(cosines.max(0).mean(), cosines.max(1).mean())))
    return np.array(found, np.float32)


COSINES: dict[Kind, Callable[[Any, Any], npt.NDArray[np.float32]]] = {
    DENSE: _cosines,
    SPARSE: _sparse_cosines,
    MULTI_VECTOR: _token_cosines,
}
