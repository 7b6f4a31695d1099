"""Compares a model's vectors with those of sentence-transformers on the user's own texts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.sample import sampled_texts
from kosbert_ray.errors import InputError, ModelError, UsageError
from kosbert_ray.job import Job, model_ref
from kosbert_ray.planning.references import not_comparable, reference_vectors
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, SPARSE, Kind, named
from kosbert_ray.vectors.similarity import COSINES
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder

SLICES = 4  # of each kind of file
# The least cosine that rounding explains, by precision.
AGREEMENT = {"fp32": 0.9999, "bf16": 0.99, "fp16": 0.99, "int8": 0.9}


def compare(config: JobConfig, count: int) -> str:
    """Embeds texts of the job's input as documents, here and with sentence-transformers in fp32.

    Vectors are compared as the model makes them: before token pooling, which may cluster equally near vectors in another
    way, and before options of the output that leave values out.

    Args:
        config: the job; without an input, the bundled sentences are used.
        count: number of texts.

    Returns:
        For each kind of vectors that the job writes, the least cosine between the two vectors of a text, or why
        sentence-transformers cannot make that kind.

    Raises:
        UsageError: sentence-transformers is not installed, or the model does not have the kinds that the job writes.
        ModelError: the vectors differ by more than rounding, or sentence-transformers cannot load the model.
        KosbertError: the input or the model cannot be read.
    """
    if find_spec("sentence_transformers") is None:
        raise UsageError("--compare: sentence-transformers is not installed; pip install sentence-transformers")
    from kosbert_ray.encoder.encoder import Encoder

    job = Job.resolve(config if config.input.path else _with_bundled_input(config), model=model_ref(config))
    spec, texts = job.spec, _texts(job, count)
    reasons = {kind: not_comparable(spec, kind) for kind in job.kinds}
    comparable = [kind for kind, reason in reasons.items() if not reason]
    if not comparable:
        return "; ".join(reasons.values())
    encoder = Encoder(spec, job.config.encoder, kinds=job.kinds)
    ours = _encode(encoder, comparable, texts)
    sentences = [
        reason or _compared(encoder, kind, texts, ours[kind], job.config.model.truncate_dim)
        for kind, reason in reasons.items()
    ]
    return "; ".join(sentences)


def _with_bundled_input(config: JobConfig) -> JobConfig:
    return config.model_copy(update={"input": config.input.model_copy(update={"path": "bundled:everyday"})})


def _texts(job: Job, count: int) -> list[str]:
    """Returns good texts of the input, evenly spread; raises InputError if there are none."""
    slices = sampled_texts(job.reader(), job.fragments(), SLICES)
    found: list[str] = [text for texts in slices for text in texts[:count].to_pylist()]
    if not found:
        raise InputError(f"{job.corpus.storage.address}: no text could be read")
    step = max(1, len(found) // count)
    return found[::step][:count]


def _encode(encoder: Encoder, kinds: Sequence[Kind], texts: list[str]) -> dict[Kind, Any]:
    """Returns the vectors of texts in one pass of the model, as a job computes them; raises ModelError if one fails."""
    encoded = encoder.encode_tokens(encoder.tokenizer(texts), encode_empty=encoder.spec.static, kinds=kinds)
    for text, reason in encoded.failed.items():
        raise ModelError(f"text {text}: {reason}")
    found: dict[Kind, Any] = {kind: vectors.take(encoded.rows) for kind, vectors in encoded.ragged.items()}
    return found | {DENSE: encoded.vectors} if DENSE in kinds else found


def _compared(encoder: Encoder, kind: Kind, texts: list[str], ours: Any, truncate_dim: int | None) -> str:
    """Returns the least cosine as a sentence; raises ModelError if rounding does not explain it."""
    theirs = reference_vectors(encoder.spec, kind, texts, truncate_dim)
    _require_same_shape(encoder, kind, ours, theirs)
    cosines = COSINES[kind](ours, theirs)
    if kind == DENSE:  # a static model has no direction for a text without tokens: both vectors are 0
        cosines = np.where((ours == theirs).all(1), 1.0, cosines)
    least = int(cosines.argmin())
    found = (
        f"least cosine of {named([kind])} vectors to sentence-transformers over {plural(len(texts), 'text')}: "
        f"{cosines[least]:.6f} ({encoder.engine} {encoder.precision} on {encoder.device}, theirs in fp32 on the CPU)"
    )
    if not cosines[least] >= AGREEMENT[encoder.precision]:  # NaN, too
        again = (
            ""
            if encoder.precision == "fp32"
            else "compare with --set encoder.precision=fp32 and, if they differ there, too, "
        )
        raise ModelError(f"{found}, for {texts[least][:60]!r}; {again}please report the model")
    return found


def _require_same_shape(encoder: Encoder, kind: Kind, ours: Any, theirs: Any) -> None:
    """Raises ModelError for vectors of another length, or another number of token vectors."""
    if kind == SPARSE:
        return
    said = f"{encoder.spec.folder}: sentence-transformers gives"
    sides = (ours.values, theirs.values) if isinstance(ours, TokenVectors) else (ours, theirs)
    here, there = (int(side.shape[1]) for side in sides)
    if here != there:
        raise ModelError(f"{said} {there} numbers a vector, and not {here}")
    if isinstance(ours, TokenVectors) and (off := np.flatnonzero(ours.counts != theirs.counts).tolist()):
        here, there = ours.counts[off[0]], theirs.counts[off[0]]
        raise ModelError(f"{said} a text {there:,} vectors, and not {here:,}; please report the model")
