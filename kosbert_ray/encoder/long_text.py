"""Texts that exceed the model's maximum length: truncated, or split into chunks with a row each or a mean vector.

A chunk's vector is the one that the model gives for ``text[start:end]`` alone; with the policy "late", it is
pooled from an encoding of more of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.encoder import late
from kosbert_ray.encoder.chunks import Span, cut, levels_of
from kosbert_ray.encoder.options import LongTextPolicy, Splitter
from kosbert_ray.encoder.packing import Int32, Int64, Tokens
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import UsageError

Find = Callable[[pa.Array], Int64]


@dataclass(frozen=True)
class Chunks:
    """The ``m`` chunks of ``n`` texts.

    Attributes:
        source: int64 ``[m]``, the index of each chunk's text.
        number: int32 ``[m]``, the chunk's number within the text, from 0.
        start, end: int64 ``[m]``, its position in the text, in Unicode code points.
    """

    source: Int64
    number: Int32
    start: Int64
    end: Int64


@dataclass(frozen=True)
class Sequences:
    """The model's input for some texts.

    Attributes:
        tokens: token ids, with a row per text, or per chunk with the policies "chunk" and "late".
        known: int64 ``[u]``, the index of each sequence's shared vector, or -1 if it must be encoded.
        split: number of texts that were split into chunks.
        chunks: the chunks, with the policies "chunk" and "late".
    """

    tokens: Tokens
    known: Int64
    split: int
    chunks: Chunks | None

    def to_encode(self) -> npt.NDArray[np.bool_]:
        """Returns bool ``[u]``, true for the sequences that the model must encode."""
        wanted = self.known < 0
        wanted[self.tokens.part_of] = False
        return wanted

    @property
    def distinct(self) -> int:
        """Number of vectors that the model must compute."""
        return int(self.to_encode().sum()) + len(self.tokens.span_of) - len(np.unique(self.tokens.span_of))


@dataclass(frozen=True)
class LongText:
    """The treatment of texts that are too long.

    Attributes:
        policy: "truncate", as sentence-transformers does; "mean" for the mean of the chunks' vectors, weighted by their
            tokens; "chunk" for a row per chunk; "late" for a row per chunk, pooled from an encoding of the text.
        size: maximum number of tokens in a chunk, including special tokens and the prompt's.
        overlap: number of tokens that may be repeated from the previous chunk.
        splitter: name of the splitter that finds sentence boundaries.
        normalized: whether the model's vectors have length 1, so that means are normalized, too.
    """

    policy: LongTextPolicy
    size: int
    overlap: int
    splitter: Splitter
    normalized: bool

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises UsageError if the size leaves no room for a chunk with this tokenizer."""
        room = self.size - tokenizer.overhead
        if self.policy != "truncate" and room <= self.overlap:
            raise UsageError(
                f"chunk.size: {tokenizer.overhead} of {self.size} tokens are special tokens or the prompt's, which leaves "
                f"{max(0, room)} for the text with chunk.overlap={self.overlap}; increase chunk.size or reduce the overlap"
            )

    def __call__(self, tokenizer: Tokenizer, texts: pa.Array, find: Find | None = None) -> Sequences:
        """Tokenizes ``n`` texts without nulls.

        Args:
            tokenizer: the model's tokenizer.
            texts: the texts.
            find: returns the index of each text's shared vector, or -1; None if there are no shared vectors.
        """
        tokens = tokenizer(texts)
        known = np.full(len(tokens.lengths), -1, np.int64)
        if self.policy == "truncate" and not find:
            return Sequences(tokens, known, 0, None)
        distinct = texts.dictionary_encode().dictionary
        if find:
            known = find(distinct)
        if self.policy == "truncate":
            return Sequences(tokens, known, 0, None)
        is_long = (tokens.lengths > self.size) | (tokens.dropped > 0)
        split = int(is_long[tokens.rows].sum())
        if self.policy == "mean":  # a shared vector already is the mean
            tokens = replace(tokens, dropped=np.where(known < 0, tokens.dropped, 0).astype(np.int32))
            is_long &= known < 0
        long = np.flatnonzero(is_long)
        long_texts = distinct.take(pa.array(long)).to_pylist()
        spans, pieces = self._pieces(tokenizer, long_texts)
        if self.policy == "late":
            pieces = late.windows(tokenizer, long_texts, spans)
        more = np.full(len(pieces.lengths), -1, np.int64)
        if find and self.policy != "late":  # the vector of a chunk depends on the text around it
            more = find(_strings(spans, distinct, long, pieces.rows))
        known = np.concatenate((known, more))
        part = pieces.rows + np.int32(len(tokens.lengths))
        part_of = np.repeat(long, [len(items) for items in spans]).astype(np.int32)
        both = _joined(tokens, pieces, is_long)
        if self.policy == "mean":
            return Sequences(replace(both, part_of=part_of, part=part), known, split, None)
        flat = _flat(spans, long, part, pc.utf8_length(distinct).to_numpy().astype(np.int64))
        chunks, rows = _expanded(flat, tokens.rows)
        # The long texts themselves are not encoded.
        left = np.concatenate((~is_long, np.ones(len(pieces.lengths), bool)))
        number = np.concatenate((np.cumsum(left) - 1, left.sum() + np.arange(len(pieces.span_of)))).astype(np.int32)
        failed = {int(number[index]): reason for index, reason in both.failed.items() if left[index]}
        both = replace(both, lengths=both.lengths[left], rows=number[rows], dropped=both.dropped[left], failed=failed)
        return Sequences(replace(both, span_of=number[both.span_of]), known[left], split, chunks)

    def _pieces(self, tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[Span]], Tokens]:
        """Returns the chunks of each text, and their tokens with a row per chunk, text by text."""
        room = max(1, self.size - tokenizer.overhead)
        spans = [
            list(cut(text, places, room, self.overlap, levels_of(text, self.splitter))) or [(0, len(text))]
            for text, places in zip(texts, tokenizer.places(texts), strict=True)
        ]
        while True:
            pieces = tokenizer([text[start:end] for text, items in zip(texts, spans, strict=True) for start, end in items])
            too_long = ((pieces.lengths > self.size) | (pieces.dropped > 0))[pieces.rows]
            if room == 1 or not too_long.any():
                return spans, pieces
            # A word that is split may have more tokens than the whole word.
            room //= 2
            flags = iter(too_long.tolist())
            spans = [
                [part for span in items for part in (self._halved(tokenizer, text, span, room) if next(flags) else [span])]
                for text, items in zip(texts, spans, strict=True)
            ]

    def _halved(self, tokenizer: Tokenizer, text: str, span: Span, room: int) -> list[Span]:
        start, end = span
        piece = text[start:end]
        found = cut(piece, tokenizer.places([piece])[0], room, 0, levels_of(piece, self.splitter))
        return [(start + begin, start + stop) for begin, stop in found]


def _strings(spans: list[list[Span]], texts: pa.Array, long: Int64, part: Int32) -> pa.Array:
    """Returns the distinct chunks, in the order of their sequences."""
    found: dict[int, str] = {}
    sequences = iter(part.tolist())
    for index, items in zip(long.tolist(), spans, strict=True):
        text = texts[index].as_py()
        for start, end in items:
            found[next(sequences)] = text[start:end]
    return pa.array([found[sequence] for sequence in range(len(found))], pa.large_string())


def _joined(tokens: Tokens, pieces: Tokens, emptied: npt.NDArray[np.bool_]) -> Tokens:
    """Concatenates both, dropping the tokens of the ``emptied`` texts of the first, which has no spans."""
    ids: npt.NDArray[Any] = np.concatenate((tokens.ids[~np.repeat(emptied, tokens.lengths)], pieces.ids))
    before = len(tokens.lengths)
    return Tokens(
        ids,
        np.concatenate((np.where(emptied, 0, tokens.lengths), pieces.lengths)).astype(np.int32),
        tokens.rows,
        np.concatenate((np.where(emptied, 0, tokens.dropped), pieces.dropped)).astype(np.int32),
        {**tokens.failed, **{before + index: reason for index, reason in pieces.failed.items()}},
        span_of=pieces.span_of + np.int32(before),
        span_start=pieces.span_start,
        span_end=pieces.span_end,
    )


@dataclass(frozen=True)
class _Flat:
    """The chunks of all distinct texts: the number per text, and the sequence and position of each chunk."""

    counts: Int64
    sequence: Int64
    number: Int64
    start: Int64
    end: Int64


def _flat(spans: list[list[Span]], long: Int64, part: Int32, lengths: Int64) -> _Flat:
    counts = np.ones(len(lengths), np.int64)
    counts[long] = [len(items) for items in spans]
    firsts = np.cumsum(counts) - counts
    number = np.arange(int(counts.sum())) - np.repeat(firsts, counts)
    of_long = np.repeat(np.isin(np.arange(len(lengths)), long), counts)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    start, end = np.zeros(len(number), np.int64), np.repeat(lengths, counts)
    sequence[of_long] = part
    places = np.array([span for items in spans for span in items], np.int64).reshape(-1, 2)
    start[of_long], end[of_long] = places[:, 0], places[:, 1]
    return _Flat(counts, sequence, number, start, end)


def _expanded(flat: _Flat, rows: Int32) -> tuple[Chunks, Int64]:
    """Repeats the chunks for each row that holds the text; returns them and the sequence of each."""
    counts = flat.counts[rows]
    source = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = (np.cumsum(flat.counts) - flat.counts)[rows][source] + within
    return Chunks(source, flat.number[at].astype(np.int32), flat.start[at], flat.end[at]), flat.sequence[at]


def join_parts(vectors: npt.NDArray[np.float32], tokens: Tokens, failed: dict[int, str], normalized: bool) -> None:
    """Computes the vectors of texts that are means of their chunks, in place.

    Args:
        vectors: the vectors of all sequences, float32 ``[u, dimension]``.
        tokens: the slice, which says which sequences are parts of which texts.
        failed: the reasons for sequences without a vector; means with a failed part are added.
        normalized: whether to scale means to length 1.
    """
    means = np.unique(tokens.part_of)
    weights = tokens.lengths[tokens.part].astype(np.float32)
    sums = np.zeros((len(means), vectors.shape[1]), np.float32)
    totals = np.zeros((len(means), 1), np.float32)
    at = np.searchsorted(means, tokens.part_of)
    np.add.at(sums, at, vectors[tokens.part] * weights[:, None])
    np.add.at(totals, at, weights[:, None])
    if normalized:
        totals = np.linalg.norm(sums, axis=1, keepdims=True)
    vectors[means] = sums / np.where(totals == 0, 1, totals)
    for text, part in zip(tokens.part_of.tolist(), tokens.part.tolist(), strict=True):
        if part in failed:
            failed.setdefault(text, failed[part])
            vectors[text] = 0
