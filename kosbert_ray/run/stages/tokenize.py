"""Tokenize: texts become token ids, each distinct text once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.config import TEXT_HASH
from kosbert_ray.corpus.row_table import TEXT
from kosbert_ray.corpus.text import DECOMPOSED_NOTICE, MANY_DECOMPOSED, decomposed
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.run.chunk_rows import expand
from kosbert_ray.run.known_vectors import KnownVectors
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.slice_row import KNOWN, MADE, REUSED, SliceRow
from kosbert_ray.run.stages.work import Work, run_stage
from kosbert_ray.run.text_hashes import hashes_of


def tokenize(
    slices: Sequence[SliceRow], work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None
) -> list[SliceRow]:
    """Tokenizes slices. Texts of good rows are dropped."""
    return run_stage("tokenize", slices, work, lambda item: tokenize_slice(item, work, tokenizer, shared_texts))


def tokenize_slice(row: SliceRow, work: Work, tokenizer: Tokenizer, shared_texts: SharedTexts | None) -> SliceRow:
    """Tokenizes one slice.

    Args:
        row: the slice.
        work: the job.
        tokenizer: the model's.
        shared_texts: texts whose vectors are known already.
    """
    started = time.perf_counter()
    good = row.texts.filter(row.good) if row.reasons.null_count < len(row.texts) else row.texts
    known = KnownVectors(shared_texts, work) if shared_texts or work.older else None
    found = work.long_text(tokenizer, good, known.find if known else None)
    if found.chunks:
        row = expand(row, found.chunks, work.made_columns)
    elif TEXT_HASH in work.made_columns:
        row = row.with_columns({MADE + TEXT_HASH: hashes_of(row.texts)})
    tokens = found.tokens
    failed: dict[int, str] = {}
    if tokens.failed:
        texts_of = enumerate(tokens.row_texts().tolist())
        failed = {index: tokens.failed[text] for index, text in texts_of if text in tokens.failed}
        tokens = replace(tokens, rows=tokens.rows[[index not in failed for index in range(len(tokens.rows))]])
    to_encode = found.to_encode()
    if not tokenizer.composes and decomposed(good) > MANY_DECOMPOSED * max(1, len(good)):
        row = replace(row, notices=(*row.notices, DECOMPOSED_NOTICE))
    texts = row.texts
    row = row.reject(failed).with_tokens(tokens)
    if known:
        row = row.with_columns({KNOWN: pa.array(found.known), REUSED: pa.array(known.vectors.reshape(-1))})
    if failed and found.chunks:
        row = replace(row, reread=True)
    no_text = pa.scalar(None, pa.large_string())
    row = row.with_columns({TEXT: pc.if_else(pc.is_valid(row.reasons), texts, no_text)})
    dropped = tokens.dropped[tokens.row_texts()]
    return row.with_facts(
        distinct=found.distinct - len(tokens.failed),
        tokens=int(tokens.row_lengths().sum()),
        encoded_tokens=int(tokens.lengths[to_encode].sum()),
        unknown_tokens=tokenizer.unknown(tokens, to_encode),
        reused=int((found.known >= known.shared).sum()) if known else 0,
        split=found.split,
        truncated=int((dropped > 0).sum()),
        dropped_tokens=int(dropped.sum()),
        tokenize_seconds=time.perf_counter() - started,
    )
