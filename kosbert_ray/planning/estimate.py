"""What a job will take, told before anything is spent: rows, tokens, bytes, slices, time and money, from a sample.

No GPU and no Ray: the tokenizer counts the tokens of some slices, spread evenly, and a few of their texts are embedded to
see what their vectors take on the disk.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.fragments import Fragment, Slice
from kosbert_ray.corpus.row_table import REASON, TEXT
from kosbert_ray.corpus.sample import Stratum, sampled_slices, strata
from kosbert_ray.corpus.text import DECOMPOSED_NOTICE, MANY_DECOMPOSED, decomposed
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.encoder.tokenizer import Tokenizer, unknown_notice
from kosbert_ray.errors import InputError, StorageError
from kosbert_ray.job import (
    embedding_formats,
    encoder_options,
    fragment_reader,
    fragments_of,
    long_text,
    model_ask,
    open_corpus,
)
from kosbert_ray.run.chunk_rows import chunk_columns
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import parquet_bytes, shard_bytes
from kosbert_ray.shards.vector_types import ranges_of

MOST_TEXT_BYTES = 2 * 2**20  # of a slice; of a larger one, every so many texts are tokenized
EMBEDDED_TEXTS = 512
EMBEDDED_CHARS = 256  # of each: what its numbers compress to hardly depends on its length, and long ones take a CPU minutes
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
VECTOR_CHUNKS = 8
# A receipt as long as they usually are, for a shard's footer.
USUAL = Receipt(
    shard="part-00000.00000-00000.01234567.parquet",
    file="part-00000.parquet",
    version="1795607435365492950",
    fragment=64 * "0",
    fragment_index=0,
    slice_index=0,
    last=False,
    rows=10_000,
    rejected=0,
    distinct=10_000,
    tokens=200_000,
    encoded_tokens=200_000,
    truncated=0,
    dropped_tokens=0,
    input_bytes=1_000_000,
    output_bytes=0,
    embedding_xxh128=32 * "0",
    precision="bf16",
    attention="packed",
    device="cuda",
)
GETS_OF_A_FRAGMENT, GETS_OF_A_SLICE, PUTS_OF_A_SLICE = 3, 1, 1
RECEIPTS_OF_A_PUT = 1000


@dataclass(frozen=True)
class Estimate:
    """What a job will take. Numbers are of the whole corpus, and estimates unless it is small enough to be looked at whole.

    Attributes:
        files, file_bytes: of the input, as stored.
        rows: rows of the input that will have a vector.
        output_rows: rows of the output: as many, or more where long texts are cut into chunks.
        split: texts that are cut into chunks.
        rejected: rows that will not, by reason.
        text_bytes: of their texts, as UTF-8.
        tokens: of all rows, cut to the model's length.
        encoded_tokens: that go through the model: a text that repeats in a slice counts once.
        repeated: share of the rows whose text stands in their slice before.
        shared: share of the texts to encode that stand in another of the slices looked at; in all of them there are more.
        truncated: rows longer than the model takes.
        dropped_tokens: tokens that are cut off from these.
        lengths: rows by length: at most so many tokens.
        max_seq_length: tokens that the model takes.
        slices: of the job.
        output_bytes: of all shards.
        puts, gets: requests to the stores.
        looked_at: rows of the slices that were looked at.
        unread: why files or slices could not be read.
        notices: what the user should know of how the input is read.
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
    max_seq_length: int
    slices: float
    output_bytes: float
    puts: float
    gets: float
    looked_at: int
    unread: tuple[str, ...]
    notices: tuple[str, ...] = ()


class _Sums:
    """Sums over slices that were looked at, each counted as often as there are such slices."""

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
    """Looks at ``plan.slices`` slices of the input and reckons with what they hold.

    Raises:
        KosbertError: the input or the model cannot be read.
    """
    corpus, columns = open_corpus(config)
    spec = model_ask(config).spec()
    tokenizer = Tokenizer.load(spec)
    policy = long_text(config, spec)
    policy.check(tokenizer)
    reader = fragment_reader(config, corpus.storage, columns)
    fragments = fragments_of(config, corpus)
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
    formats = embedding_formats(config, spec)
    vectors = _some_vectors(spec, tokenizer, config, texts)
    output_rows = whole.values["output_rows"]
    row_bytes, bytes_besides = _output_bytes(formats, vectors, kept, round(output_rows / max(1.0, slices)))
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
        lengths=dict(sorted(whole.lengths.items())),
        max_seq_length=spec.max_seq_length,
        slices=slices,
        output_bytes=written * row_bytes + slices * bytes_besides,
        puts=puts,
        gets=len(corpus.files) + len(fragments) * GETS_OF_A_FRAGMENT + slices * GETS_OF_A_SLICE,
        looked_at=looked_at,
        unread=tuple(unread),
        notices=(*corpus.notices, *filter(None, [corpus.ignored_line(), unknown, nfd, limit])),
    )


def _look(table: pa.Table, tokenizer: Tokenizer, policy: LongText, columns: Sequence[str]) -> tuple[_Sums, pa.Table]:
    """What a slice holds; of a large one by every so many of its distinct texts. And columns as they will be written."""
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
    step = max(1, math.ceil(int(sizes.sum()) / MOST_TEXT_BYTES))
    chosen = np.arange(step // 2, len(distinct), step)
    found = policy(tokenizer, distinct.take(pa.array(chosen)))
    tokens = found.tokens
    source = found.chunks.source if found.chunks else np.arange(len(chosen))
    row_lengths = tokens.row_lengths()
    good = row_lengths > 0
    lengths, dropped = row_lengths[good], tokens.dropped[tokens.rows][good].astype(np.int64)
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
    bins = np.searchsorted(LENGTHS, lengths)
    for index in np.unique(bins).tolist():
        upper = LENGTHS[index] if index < len(LENGTHS) else int(lengths.max())
        sums.lengths[upper] += float(weights[bins == index].sum())
    for text in np.flatnonzero(~good).tolist():
        reason = tokens.failed.get(int(tokens.rows[text]), "no tokens are left of it")
        sums.rejected[reason] += float(times_each[text])
    if found.chunks:
        first = np.unique(encoded.indices.to_numpy(), return_index=True)[1][chosen]
        kept = good_rows.select(kept.column_names).take(first[source])
        for name, column in chunk_columns(found.chunks, distinct.take(pa.array(chosen)), columns).items():
            kept = kept.append_column(name, column)
    return sums, kept


def _slices_of(part: Stratum, looked_at: list[tuple[Slice, int, int]], config: JobConfig) -> float:
    """Slices that a stratum is cut into, by the rows and the bytes of text that there are to its own measure."""
    limits = config.slice.limits()
    sizes = sum(part.size_of(piece) for piece, _, _ in looked_at)
    rows = sum(count for _, count, _ in looked_at) / sizes
    size = sum(text for _, _, text in looked_at) / sizes

    def of(fragment: Fragment) -> int:
        extent = fragment.stop - fragment.start
        return max(1, math.ceil(extent * rows / limits.max_rows), math.ceil(extent * size / limits.max_bytes))

    return float(sum(of(fragment) for fragment in part.fragments))


def _some_vectors(spec: ModelSpec, tokenizer: Tokenizer, config: JobConfig, texts: list[Any]) -> npt.NDArray[np.float32]:
    """Vectors of some of the texts, float32 ``[n, dimension]``."""
    from kosbert_ray.encoder.encoder import Encoder

    chosen: list[str] = []
    for column in texts:
        wanted = max(1, EMBEDDED_TEXTS // len(texts))
        step = max(1, len(column) // wanted)
        chosen += [text[:EMBEDDED_CHARS] for text in column.take(np.arange(0, len(column), step)[:wanted]).to_pylist()]
    encoder = Encoder(spec, replace(encoder_options(config), device="cpu"))
    encoded = encoder.encode_tokens(tokenizer(list(dict.fromkeys(chosen))))
    return encoded.vectors[[row for row in range(len(encoded.rows)) if row not in encoded.failed]]


def _output_bytes(
    formats: Sequence[EmbeddingFormat], vectors: npt.NDArray[np.float32], kept: list[pa.Table], slice_rows: int
) -> tuple[float, float]:
    """Bytes that a row takes in a shard, and those that a shard takes besides, written as a run would write them.

    Args:
        formats: how vectors are stored.
        vectors: of some rows.
        kept: the kept columns of the slices that were looked at.
        slice_rows: of a usual slice.
    """
    if not len(vectors):
        return 0.0, 0.0
    ranges = ranges_of(vectors)
    formats = [format.with_ranges(ranges) for format in formats]
    count = max(1, min(slice_rows, len(vectors)))
    starts = range(0, len(vectors) - count + 1, count)[:VECTOR_CHUNKS]
    schema = pa.schema([format.field() for format in formats])
    chunks = [
        pa.table([format.array(vectors[start : start + count]) for format in formats], schema=schema) for start in starts
    ]
    vector_bytes = sum(_column_bytes(parquet_bytes(chunk, formats)) for chunk in chunks) / (count * len(chunks))
    kept_bytes = 0.0
    if kept[0].num_columns:
        sizes = [_column_bytes(parquet_bytes(table, formats)) for table in kept]
        kept_bytes = sum(sizes) / max(1, sum(int(table.num_rows) for table in kept))
    few = kept[0].slice(0, 1)
    columns = {name: few[name].combine_chunks() for name in few.column_names}
    said = USUAL.footer() | {"fingerprint": 64 * "0"}
    shard = shard_bytes(columns, [format.array(vectors[: few.num_rows]) for format in formats], formats, said)
    return vector_bytes + kept_bytes, float(shard.size - _column_bytes(shard))


def _column_bytes(content: pa.Buffer) -> int:
    """Bytes of a Parquet file's columns, all else left out."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return sum(int(group.column(number).total_compressed_size) for group in groups for number in range(group.num_columns))
