"""Compares a model's vectors with those of sentence-transformers on the user's own texts."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import numpy as np

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.sample import sampled_texts
from kosbert_ray.errors import InputError, ModelError, UsageError, first_line
from kosbert_ray.job import Job, model_ref
from kosbert_ray.units import plural
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import DENSE, named

SLICES = 4  # of each kind of file
# The least cosine that rounding explains, by precision.
AGREEMENT = {"fp32": 0.9999, "bf16": 0.99, "fp16": 0.99, "int8": 0.9}


def compare(config: JobConfig, count: int) -> str:
    """Embeds texts of the job's input here and with sentence-transformers in fp32.

    Args:
        config: the job; without an input, the bundled sentences are used.
        count: number of texts.

    Returns:
        The least cosine between the two vectors of a text, as a sentence.

    Raises:
        UsageError: sentence-transformers is not installed.
        ModelError: the vectors differ by more than rounding, or sentence-transformers cannot load the model.
        KosbertError: the input or the model cannot be read.
    """
    if find_spec("sentence_transformers") is None:
        raise UsageError("--compare: sentence-transformers is not installed; pip install sentence-transformers")
    from kosbert_ray.encoder.encoder import Encoder

    job = Job.resolve(config if config.input.path else _with_bundled_input(config), model=model_ref(config))
    texts = _texts(job, count)
    spec = job.spec
    if DENSE not in spec.kinds:
        return f"not compared: this is for dense vectors, and the model has {named(spec.kinds)} ones"
    encoder = Encoder(spec, job.config.encoder, kinds=(DENSE,))
    ours = encoder.encode(texts)
    theirs = _theirs(job, texts)
    if ours.shape != theirs.shape:
        raise ModelError(
            f"{spec.folder}: sentence-transformers gives {theirs.shape[1]} numbers a vector, and not {ours.shape[1]}"
        )
    # A static model has no direction for a text without tokens: both vectors are 0.
    cosines = np.where((ours == theirs).all(1), 1.0, (unit(ours) * unit(theirs)).sum(1))
    least = int(cosines.argmin())
    found = (
        f"least cosine to sentence-transformers over {plural(len(texts), 'text')}: {cosines[least]:.6f} ({encoder.engine} "
        f"{encoder.precision} on {encoder.device}, theirs in fp32 on the CPU)"
    )
    if cosines[least] < AGREEMENT[encoder.precision]:
        raise ModelError(f"{found}, for {texts[least][:60]!r}; please report the model")
    return found


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


def _theirs(job: Job, texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer

    spec = job.spec
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        model = SentenceTransformer(
            str(spec.folder),
            device="cpu",
            trust_remote_code=spec.remote_code,
            model_kwargs={} if spec.static else {"dtype": "float32"},
            truncate_dim=job.config.model.truncate_dim,
        )
        if spec.length_limit:
            model.max_seq_length = spec.max_seq_length
        return model.encode(texts, batch_size=1, prompt=spec.prompt or None, show_progress_bar=False)
    except Exception as error:
        raise ModelError(f"{spec.folder}: sentence-transformers cannot embed with it ({first_line(error)})") from error
