"""Encodes a few rows of a corpus, because the size of sparse vectors depends on the model and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa

from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import KosbertError, first_line
from kosbert_ray.model.parameters import weight_bytes
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.units import data_size
from kosbert_ray.vectors.kinds import SPARSE
from kosbert_ray.vectors.sparse import SparseVectors

ROWS = 256  # that are encoded
TOKENS = 4096  # of these rows: some seconds of a base model on two cores
MAX_WEIGHT_BYTES = 2**30  # a base model with a multilingual vocabulary; larger ones take too long to load for an estimate


@dataclass(frozen=True)
class SparseSample:
    """Sparse vectors by which those of a corpus are estimated.

    Attributes:
        vectors: of a few rows of the corpus, as a shard would keep them; random ones if the model cannot be run.
        assumed: why they are random; empty if they are the model's.
    """

    vectors: SparseVectors
    assumed: str = ""

    @property
    def mean(self) -> float:
        """The average number of values of a vector."""
        return float(self.vectors.counts.mean())


def sparse_sample(
    spec: ModelSpec,
    options: EncoderOptions,
    item: SparseFormat,
    policy: LongText,
    tokenizer: Tokenizer,
    texts: Sequence[pa.Array],
    tokens: float,
) -> SparseSample:
    """Encodes a few rows on the CPU.

    Where the model is too large for that or cannot be loaded here, the sample has as many values as such models typically
    give.

    Args:
        spec: the model.
        options: how the job computes. Values of lower precision compress better, so its precision is used if a CPU has it.
        item: how sparse vectors are stored, which may limit their values.
        policy: the treatment of long texts.
        tokenizer: the model's tokenizer.
        texts: the good texts of each sampled slice.
        tokens: average of a row.
    """
    try:
        if (size := weight_bytes(spec, "fp32")) > MAX_WEIGHT_BYTES:
            reason = f"the model's {data_size(size)} of weights are not loaded for an estimate"
        elif len(vectors := _encode(spec, options, item, _rows(policy, tokenizer, texts))):
            return SparseSample(vectors)
        else:
            reason = "none of the sampled rows could be encoded"
    except (KosbertError, MemoryError) as error:
        reason = f"the model cannot run here ({first_line(error)})"
    return SparseSample(_random(spec, item, tokens), reason)


def _random(spec: ModelSpec, item: SparseFormat, tokens: float) -> SparseVectors:
    """Returns random vectors with a typical number of values."""
    assert spec.sparse is not None
    typical = max(1, round(spec.sparse.typical_values(tokens)))
    count = min(typical, item.dimension, item.top_k or typical)
    random = np.random.default_rng(0)
    indices = np.sort(random.integers(0, item.dimension, (ROWS, count)), axis=1)
    values = random.exponential(0.5, ROWS * count).astype(np.float32)
    return SparseVectors.of_coordinates(np.repeat(np.arange(ROWS), count), indices.ravel(), values, np.ones(ROWS, bool))


def _rows(policy: LongText, tokenizer: Tokenizer, texts: Sequence[pa.Array]) -> list[str]:
    """Draws texts of the sampled slices; where long texts are split, chunks of them."""
    random = np.random.default_rng(0)
    every = pa.chunked_array(texts)
    drawn = np.sort(random.permutation(len(every))[:ROWS])  # in order: neighbours may be alike, and compress well
    rows: list[str] = every.take(pa.array(drawn)).to_pylist()
    chunks = policy(tokenizer, pa.array(rows, pa.large_string())).chunks
    if chunks:
        spans = zip(chunks.source.tolist(), chunks.start.tolist(), chunks.end.tolist(), strict=True)
        rows = [rows[source][start:end] for source, start, end in spans]
    return [rows[row] for row in np.sort(random.permutation(len(rows))[:ROWS])]


def _encode(spec: ModelSpec, options: EncoderOptions, item: SparseFormat, rows: list[str]) -> SparseVectors:
    """Returns the vectors of the rows that can be encoded, among random rows with about ``TOKENS`` tokens."""
    from kosbert_ray.encoder.encoder import Encoder

    precision = options.precision if options.precision in ("fp32", "bf16") else "auto"
    encoder = Encoder(spec, EncoderOptions(device="cpu", precision=precision, engine="torch"), kinds=(SPARSE,))
    lengths = encoder.tokenizer(rows).row_lengths()
    order = np.random.default_rng(0).permutation(len(rows))
    starts = np.cumsum(lengths[order]) - lengths[order]
    few = [rows[row] for row in np.sort(order[starts < TOKENS])]
    encoded = encoder.encode_tokens(encoder.tokenizer(few), kinds=(SPARSE,))
    good = [row for row in range(len(few)) if row not in encoded.failed]
    return item.kept(cast(SparseVectors, encoded.ragged[SPARSE])).take(encoded.rows[good])
