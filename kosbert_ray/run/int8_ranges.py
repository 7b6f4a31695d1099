"""Measures the ranges of int8 on a sample of the job's texts, before its first slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import REASON, TEXT
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.executors.base import EncoderPool, Executor
from kosbert_ray.shards.vector_types import Ranges, ranges_of
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE

FRAGMENTS = 16
TEXTS = 1024
MAX_CHARS = 256  # of each text: short texts have wider ranges, and long ones take minutes on a CPU


def sample_texts(reader: FragmentReader, fragments: Sequence[Fragment]) -> list[str]:
    """Takes the beginnings of up to 1,024 texts from the first slices of up to 16 evenly spread fragments; deterministic.

    Raises:
        InputError: there is no text in them.
    """
    chosen = [fragments[index] for index in _spread(len(fragments), FRAGMENTS).tolist()]
    texts: list[str] = []
    for fragment in chosen:
        try:
            found = next(reader.slices(fragment), None)
        except (InputError, StorageError):  # the run itself reports it
            continue
        if found is not None:
            good = found[1].filter(found[1][REASON].is_null())[TEXT]
            texts += good.take(_spread(len(good), TEXTS // len(chosen))).to_pylist()
    if not texts:
        raise InputError(
            f"{reader.storage.url()}: output.dtype=int8 needs a sample of the texts for its ranges, and the first slices "
            f"of {plural(len(chosen), 'file')} contain none"
        )
    return [text[:MAX_CHARS] for text in texts]


def _spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Spreads ``wanted`` indices evenly below ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def calibrate(
    reader: FragmentReader,
    fragments: Sequence[Fragment],
    model: PreparedModel,
    options: EncoderOptions,
    executor: Executor,
    pool: EncoderPool,
) -> Ranges:
    """Computes the smallest and largest value of each dimension, where an encoder would run.

    Raises:
        InputError: there is no text.
        ModelError: the model cannot be loaded, or a sampled text cannot be embedded.
    """
    found = executor.call(pool, _ranges, reader, list(fragments), model, pool.encoder_options(options))
    return tuple(map(tuple, found))


def _ranges(reader: FragmentReader, fragments: list[Fragment], model: PreparedModel, options: EncoderOptions) -> Ranges:
    from kosbert_ray.encoder.encoder import Encoder

    texts = sample_texts(reader, fragments)
    spec = model.spec()
    with model.naming():
        encoder = Encoder(spec, options, kinds=(DENSE,))
    encoded = encoder.encode_tokens(encoder.tokenizer(pa.array(texts, pa.large_string())))
    good = [row for row in range(len(texts)) if row not in encoded.failed]
    if not good:
        raise InputError(f"{reader.storage.url()}: none of {plural(len(texts), 'sampled text')} could be embedded")
    return ranges_of(encoded.vectors[good])
