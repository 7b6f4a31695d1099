"""Estimates a job from a sample: rows, tokens, bytes and slices.

Needs neither a GPU nor Ray: the tokenizer counts the tokens of some evenly spread slices. The model runs on a few of their
rows only if the output has sparse vectors, whose size depends on it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.config import TEXT_HASH, JobConfig
from kosbert_ray.corpus.address import addresses
from kosbert_ray.corpus.fragments import Fragment, Limits, Slice
from kosbert_ray.corpus.options import TARGET_ROWS
from kosbert_ray.corpus.row_table import POSITION, REASON, TEXT
from kosbert_ray.corpus.sample import Stratum, sampled_slices, strata
from kosbert_ray.corpus.text import DECOMPOSED_NOTICE, MANY_DECOMPOSED, decomposed
from kosbert_ray.encoder.engines.choice import fitted, require_fitting
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.options import has_gpu
from kosbert_ray.encoder.tokenizer import Tokenizer, unknown_notice
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.job import Job, token_pooling
from kosbert_ray.planning.output_size import RowBytes, kept_bytes, output_bytes
from kosbert_ray.planning.pooling_speed import pooling_seconds
from kosbert_ray.planning.sparse_sample import SparseSample, sparse_sample
from kosbert_ray.run.chunk_rows import chunk_columns
from kosbert_ray.run.text_hashes import hashes_of
from kosbert_ray.shards.formats.sparse import SparseFormat
from kosbert_ray.vectors.kinds import MULTI_VECTOR

MAX_TEXT_BYTES = 2 * 2**20  # of a slice; of a larger one, every n-th text is tokenized
CAPS = (512, 2048)  # lengths to compare a longer model with
CAPPED = ("capped", "capped_tokens", "capped_encoded_tokens")  # sums for each of these lengths, as in ``Cap``
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
GETS_OF_A_FRAGMENT, GETS_OF_A_SLICE, PUTS_OF_A_SLICE = 3, 1, 1
RECEIPTS_OF_A_PUT = 1000


@dataclass(frozen=True)
class Cap:
    """The effect of a lower maximum length of the model. Figures are for the whole corpus.

    Attributes:
        rows: rows that would be truncated.
        tokens: tokens of all rows that would be cut off.
        encoded_tokens: tokens that would not go through the model; duplicates within a slice count once.
    """

    rows: float
    tokens: float
    encoded_tokens: float


@dataclass(frozen=True)
class Estimate:
    """The size of a job. Figures are for the whole corpus; they are exact only if the sample covers all of it.

    Attributes:
        files, file_bytes: number and stored bytes of the input files.
        rows: input rows that will get a vector.
        output_rows: rows of the output: the same, or more if long texts are cut into chunks.
        split: texts that are cut into chunks.
        rejected: rows that will be rejected, by reason.
        text_bytes: bytes of their texts in UTF-8.
        tokens: tokens of all rows, truncated to the model's length.
        encoded_tokens: tokens that go through the model; duplicates within a slice count once.
        repeated: share of rows whose text occurs earlier in their slice.
        shared: share of distinct texts that occur in another sampled slice; a lower bound for the corpus.
        truncated: rows longer than the model's maximum.
        dropped_tokens: tokens cut off from these rows.
        lengths: rows of the output by length, in bins of at most that many tokens.
        max_seq_length: the model's maximum length in tokens; None if it takes texts of any length.
        slices: number of slices.
        output_bytes: bytes of all shards.
        vector_bytes: bytes of a row's vectors, by column.
        sparse_values: average number of values of a sparse vector; 0 without sparse vectors.
        sparse_rows: rows that were encoded to measure it; 0 if it is assumed.
        sparse_assumed: why it is assumed; empty if it is measured.
        pooling_seconds: time in which a core of this machine pools all token vectors; 0 if they are not pooled.
        copied_bytes: those of the column with the texts.
        puts, gets: requests to the stores.
        looked_at: sampled rows.
        unread: why files or slices could not be read.
        notices: remarks about how the input is read.
        warnings: problems that the sampled texts show.
        caps: effects of a lower ``model.max_seq_length``, by that length; only lengths that some text exceeds.
    """

    files: int
    file_bytes: int
    rows: float
    output_rows: float
    split: float
    rejected: dict[str, float]
    text_bytes: float
    tokens: float
    encoded_tokens: float
    repeated: float
    shared: float
    truncated: float
    dropped_tokens: float
    lengths: dict[int, float]
    max_seq_length: int | None
    slices: float
    output_bytes: float
    vector_bytes: Mapping[str, float]
    pooling_seconds: float
    copied_bytes: float
    puts: float
    gets: float
    looked_at: int
    unread: tuple[str, ...]
    notices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    caps: dict[int, Cap] = field(default_factory=dict)
    sparse_values: float = 0.0
    sparse_rows: int = 0
    sparse_assumed: str = ""


class _Sums:
    """Sums over sampled slices, each weighted by the number of slices it represents."""

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)
        self.rejected: dict[str, float] = defaultdict(float)
        self.lengths: dict[int, float] = defaultdict(float)

    def add(self, other: _Sums, times: float) -> None:
        for name, value in other.values.items():
            self.values[name] += value * times
        for reason, value in other.rejected.items():
            self.rejected[reason] += value * times
        for length, value in other.lengths.items():
            self.lengths[length] += value * times


def estimate(config: JobConfig) -> Estimate:
    """Estimates a job from ``plan.slices`` slices of its input.

    Raises:
        KosbertError: the input or the model cannot be read.
    """
    job = Job.resolve(config)
    require_fitting(job.spec, config.encoder)
    job = job.sized(has_gpu(fitted(job.spec, config.encoder)))
    config = job.config
    corpus, spec, policy = job.corpus, job.spec, job.long_text
    tokenizer = Tokenizer.load(spec)
    policy.check(tokenizer)
    reader, fragments = job.reader(), job.fragments()
    parts = strata(fragments)
    whole, looked_at = _Sums(), 0
    texts: list[Any] = []
    distinct: list[set[int]] = []
    kept: list[Any] = []
    unread = [file.reason for file in corpus.failed]
    slices = 0.0
    every = sum(len(part.fragments) for part in parts)
    for part in parts:
        sums, size, numbers = _Sums(), 0, []
        count = max(1, round(config.plan.slices * len(part.fragments) / every))
        for found in sampled_slices(reader, part, count):
            if isinstance(found, InputError | StorageError):
                unread.append(str(found))
                continue
            piece, table = found
            if config.output.address:
                for name, column in addresses(piece.fragment, table[POSITION].combine_chunks()).items():
                    table = table.append_column(name, column)
            if TEXT_HASH in config.columns() and not config.chunked:
                table = table.append_column(TEXT_HASH, hashes_of(table[TEXT]))
            seen, written = _look(table, tokenizer, policy, config.columns())
            sums.add(seen, 1)
            size += part.size_of(piece)
            looked_at += table.num_rows
            numbers.append((piece, table.num_rows, pc.sum(pc.binary_length(table[TEXT])).as_py() or 0))
            texts.append(table.filter(table[REASON].is_null())[TEXT])
            distinct.append({hash(text) for text in texts[-1].to_pylist()})
            kept.append(written)
        if not size:
            continue
        whole.add(sums, part.size / size)
        slices += _slices_of(part, numbers, config)
    hold = 0 if tokenizer.composes else sum(decomposed(part) for part in texts)
    nfd = DECOMPOSED_NOTICE if hold > MANY_DECOMPOSED * max(1, sum(map(len, texts))) else None
    unknown = unknown_notice(round(whole.values["unknown"]), round(whole.values["encoded_tokens"]))
    rows = whole.values["rows"]
    lost = sum(whole.rejected.values())
    limit = None
    if lost > config.rejected_allowed(rows + lost):
        limit = f"about {lost:,.0f} rows would be rejected, more than max_rejected={config.max_rejected:g} allows"
    reuse = f"texts whose vectors {config.reuse} has are counted as if they were encoded" if config.reuse else None
    trial = f"the whole input is estimated, not only --limit {config.limit:,}" if config.limit else None
    formats = job.formats()
    output_rows = whole.values["output_rows"]
    of_row, copied, pooling_time = RowBytes({}, 0.0, 0.0), 0.0, 0.0
    sparse: SparseSample | None = None
    if any(map(len, texts)):
        slice_rows = round(output_rows / max(1.0, slices))
        pooling = token_pooling(config, spec)
        tokens = tokens_of_row = whole.values["tokens"] / max(1.0, output_rows)
        if pooling and spec.multi_vector and MULTI_VECTOR in job.kinds:
            distinct_rows = output_rows * whole.values["encoded_tokens"] / max(1.0, whole.values["tokens"])
            pooling_time = distinct_rows * pooling_seconds(spec.multi_vector, pooling, tokens)
            tokens /= pooling.factor
        for item in formats:
            if isinstance(item, SparseFormat):
                sparse = sparse_sample(spec, config.encoder, item, policy, tokenizer, texts, tokens_of_row)
        of_row = output_bytes(formats, spec, tokens, kept, slice_rows, sparse)
        if column := config.copied_column():
            copied = kept_bytes(formats, [table.select([column]) for table in kept])
    written = output_rows + (sum(whole.rejected.values()) if formats[0].nullable else 0)
    puts = slices * PUTS_OF_A_SLICE + math.ceil(slices / RECEIPTS_OF_A_PUT) + 4
    return Estimate(
        files=len(corpus.files),
        file_bytes=corpus.size,
        rows=rows,
        output_rows=output_rows,
        split=whole.values["split"],
        rejected=dict(whole.rejected),
        text_bytes=whole.values["text_bytes"],
        tokens=whole.values["tokens"],
        encoded_tokens=whole.values["encoded_tokens"],
        repeated=whole.values["repeated"] / rows if rows else 0.0,
        shared=1 - len(set().union(*distinct)) / max(1, sum(map(len, distinct))) if distinct else 0.0,
        truncated=whole.values["truncated"],
        dropped_tokens=whole.values["dropped_tokens"],
        lengths=_binned(whole.lengths),
        max_seq_length=spec.length_limit,
        slices=slices,
        output_bytes=written * of_row.row + slices * of_row.shard,
        vector_bytes=dict(of_row.vectors),
        pooling_seconds=pooling_time,
        copied_bytes=written * copied,
        puts=puts,
        gets=len(corpus.files) + len(fragments) * GETS_OF_A_FRAGMENT + slices * GETS_OF_A_SLICE,
        looked_at=looked_at,
        unread=tuple(unread),
        notices=(*corpus.notices, *filter(None, [corpus.ignored_line()])),
        warnings=tuple(filter(None, [unknown, nfd, limit, reuse, trial])),
        caps=_caps(whole.values),
        sparse_values=sparse.mean if sparse else 0.0,
        sparse_rows=len(sparse.vectors) if sparse and not sparse.assumed else 0,
        sparse_assumed=sparse.assumed if sparse else "",
    )


def _look(table: pa.Table, tokenizer: Tokenizer, policy: LongText, columns: Sequence[str]) -> tuple[_Sums, pa.Table]:
    """Sums for one slice, extrapolated from every n-th distinct text if it is large, and its kept columns."""
    sums = _Sums()
    kept = table.select([name for name in columns if name in table.column_names])
    for reason, count in Counter(reason for reason in table[REASON].to_pylist() if reason).items():
        sums.rejected[reason] += count
    good_rows = table.filter(table[REASON].is_null())
    texts = good_rows[TEXT].combine_chunks()
    if not len(texts):
        return sums, kept
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary
    times = np.bincount(encoded.indices.to_numpy(), minlength=len(distinct))
    sizes = pc.binary_length(distinct).to_numpy()
    step = max(1, math.ceil(int(sizes.sum()) / MAX_TEXT_BYTES))
    chosen = np.arange(step // 2, len(distinct), step)
    found = policy(tokenizer, distinct.take(pa.array(chosen)))
    tokens = found.tokens
    source = found.chunks.source if found.chunks else np.arange(len(chosen))
    row_lengths, row_texts = tokens.row_lengths(), tokens.row_texts()
    good = row_lengths > 0
    lengths, dropped = row_lengths[good], tokens.dropped[row_texts][good].astype(np.int64)
    times_each = times[chosen][source]
    weights = times_each[good] * len(distinct) / len(chosen)
    failed = float(times_each[~good].sum()) * len(distinct) / len(chosen)
    sums.values.update(
        rows=len(texts) - failed,
        output_rows=float(weights.sum()) if found.chunks else len(texts) - failed,
        split=found.split / len(chosen) * len(texts),
        text_bytes=int((sizes * times).sum()),
        repeated=len(texts) - len(distinct),
        tokens=float((lengths * weights).sum()),
        encoded_tokens=float(tokens.lengths.sum()) * len(distinct) / len(chosen),
        unknown=float(tokenizer.unknown(tokens)) * len(distinct) / len(chosen),
        truncated=float(weights[dropped > 0].sum()),
        dropped_tokens=float((dropped * weights).sum()),
    )
    if policy.policy == "truncate":
        for cap in CAPS:
            beyond = np.maximum(lengths - cap, 0)
            encoded_beyond = float(np.maximum(tokens.lengths - cap, 0).sum()) * len(distinct) / len(chosen)
            counts = (float(weights[beyond > 0].sum()), float((beyond * weights).sum()), encoded_beyond)
            sums.values.update({f"{name} {cap}": count for name, count in zip(CAPPED, counts, strict=True)})
    bins = np.searchsorted(LENGTHS, lengths)
    for index in np.unique(bins).tolist():
        upper = LENGTHS[index] if index < len(LENGTHS) else int(lengths.max())
        sums.lengths[upper] += float(weights[bins == index].sum())
    for text in np.flatnonzero(~good).tolist():
        reason = tokens.failed.get(int(row_texts[text]), "no tokens are left")
        sums.rejected[reason] += float(times_each[text])
    if found.chunks:
        first = np.unique(encoded.indices.to_numpy(), return_index=True)[1][chosen]
        carried = {name: good_rows[name].take(pa.array(first[source])) for name in kept.column_names}
        about_chunks = [name for name in columns if name not in table.column_names]
        kept = pa.table({**carried, **chunk_columns(found.chunks, distinct.take(pa.array(chosen)), about_chunks)})
    return sums, kept


def _binned(lengths: Mapping[int, float]) -> dict[int, float]:
    """Merges the last bins of all slices, which end with the longest text of each."""
    longest = max(lengths, default=0)
    found: dict[int, float] = defaultdict(float)
    for upper in sorted(lengths):
        found[upper if upper <= LENGTHS[-1] else longest] += lengths[upper]
    return dict(found)


def _caps(sums: Mapping[str, float]) -> dict[int, Cap]:
    """Effects of the lower maximum lengths that some text exceeds."""
    found = {cap: Cap(*(sums.get(f"{name} {cap}", 0.0) for name in CAPPED)) for cap in CAPS}
    return {cap: effect for cap, effect in found.items() if effect.rows}


def _slices_of(part: Stratum, looked_at: list[tuple[Slice, int, int]], config: JobConfig) -> float:
    """Estimates the slices of a stratum from the rows and bytes of text in its sampled part."""
    limits = Limits.of(config.slice)
    sizes = sum(part.size_of(piece) for piece, _, _ in looked_at)
    rows = sum(count for _, count, _ in looked_at) / sizes
    size = sum(text for _, _, text in looked_at) / sizes

    most = limits.max_rows
    if limits.target_bytes is not None and size:
        most = min(most, max(TARGET_ROWS, int(limits.target_bytes * rows / size)))

    def of(fragment: Fragment) -> int:
        extent = fragment.stop - fragment.start
        return max(1, math.ceil(extent * rows / most), math.ceil(extent * size / limits.max_bytes))

    return float(sum(of(fragment) for fragment in part.fragments))
