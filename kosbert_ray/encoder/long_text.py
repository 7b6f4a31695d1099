"""Texts longer than the model takes: cut off, or cut into chunks, which become rows of their own or one mean vector.

A chunk is a text like any other: its vector is the one that the model gives for ``text[start:end]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.encoder.chunks import Span, Splitter, cut, levels_of
from kosbert_ray.encoder.packing import Int32, Int64, Tokens
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import UsageError

Policy = Literal["truncate", "mean", "chunk"]
Find = Callable[[pa.Array], Int64]


@dataclass(frozen=True)
class Chunks:
    """Rows of chunks, ``m`` of them, of ``n`` texts.

    Attributes:
        source: int64, which text each is of.
        number: int32, from 0 within the text.
        start, end: int64, its place in the text, in Unicode code points.
    """

    source: Int64
    number: Int32
    start: Int64
    end: Int64


@dataclass(frozen=True)
class Sequences:
    """What goes into the model for some texts.

    Attributes:
        tokens: with a row for each text, or for each chunk.
        known: int64 ``[u]``, of each sequence which known vector is its own, -1 where it must be encoded.
        split: how many of the texts were cut into chunks.
        chunks: of ``Policy`` "chunk".
    """

    tokens: Tokens
    known: Int64
    split: int
    chunks: Chunks | None

    def to_encode(self) -> npt.NDArray[np.bool_]:
        """bool ``[u]``: the sequences that have to go through the model."""
        wanted = self.known < 0
        wanted[self.tokens.part_of] = False
        return wanted


@dataclass(frozen=True)
class LongText:
    """What becomes of texts that are too long.

    Attributes:
        policy: "truncate", as sentence-transformers does; "mean", one vector, the mean of the chunks', weighted by their
            tokens; "chunk", a row for each chunk.
        size: the most tokens of a chunk, special ones and the prompt's included.
        overlap: how many tokens of a chunk may stand in the one before, too.
        splitter: what finds the places to cut at.
        normalized: whether the model's vectors have length 1, so that means are to have it, too.
    """

    policy: Policy
    size: int
    overlap: int
    splitter: Splitter
    normalized: bool

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises UsageError if no chunk could be made with this tokenizer."""
        room = self.size - tokenizer.overhead
        if self.policy != "truncate" and room <= self.overlap:
            raise UsageError(
                f"chunk.size: of {self.size} tokens {tokenizer.overhead} are the model's and the prompt's, which leaves "
                f"{max(0, room)} for the text with chunk.overlap={self.overlap}; make it larger or the overlap smaller"
            )

    def __call__(self, tokenizer: Tokenizer, texts: pa.Array, find: Find | None = None) -> Sequences:
        """Tokenises ``n`` texts without nulls.

        Args:
            tokenizer: the model's.
            texts: the texts.
            find: of each text which known vector is its own, or -1; None: none is known.
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
        if self.policy == "mean":  # a known vector is the mean already
            tokens = replace(tokens, dropped=np.where(known < 0, tokens.dropped, 0).astype(np.int32))
            is_long &= known < 0
        long = np.flatnonzero(is_long)
        spans, pieces, part = self._pieces(tokenizer, distinct.take(pa.array(long)).to_pylist())
        more = np.full(len(pieces.lengths), -1, np.int64)
        if find:
            more = find(_strings(spans, distinct, long, part))
        known = np.concatenate((known, more))
        part += len(tokens.lengths)
        part_of = np.repeat(long, [len(items) for items in spans]).astype(np.int32)
        both = _joined(tokens, pieces, is_long)
        if self.policy == "mean":
            return Sequences(replace(both, part_of=part_of, part=part), known, split, None)
        flat = _flat(spans, long, part, pc.utf8_length(distinct).to_numpy().astype(np.int64))
        chunks, rows = _expanded(flat, tokens.rows)
        # The long texts themselves are no sequence's.
        left = np.concatenate((~is_long, np.ones(len(pieces.lengths), bool)))
        number = np.cumsum(left) - 1
        failed = {int(number[index]): reason for index, reason in both.failed.items() if left[index]}
        both = Tokens(both.ids, both.lengths[left], number[rows].astype(np.int32), both.dropped[left], failed)
        return Sequences(both, known[left], split, chunks)

    def _pieces(self, tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[Span]], Tokens, Int32]:
        """The chunks of each text, their tokens, and which sequence of these is each chunk's, text after text."""
        room = max(1, self.size - tokenizer.overhead)
        spans = [
            list(cut(text, places, room, self.overlap, levels_of(text, self.splitter))) or [(0, len(text))]
            for text, places in zip(texts, tokenizer.places(texts), strict=True)
        ]
        while True:
            pieces = tokenizer([text[start:end] for text, items in zip(texts, spans, strict=True) for start, end in items])
            too_long = ((pieces.lengths > self.size) | (pieces.dropped > 0))[pieces.rows]
            if room == 1 or not too_long.any():
                return spans, pieces, pieces.rows.copy()
            # A word that was cut may be more tokens than it was in one piece.
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
    """The distinct chunks, in the order of their sequences."""
    found: dict[int, str] = {}
    sequences = iter(part.tolist())
    for index, items in zip(long.tolist(), spans, strict=True):
        text = texts[index].as_py()
        for start, end in items:
            found[next(sequences)] = text[start:end]
    return pa.array([found[sequence] for sequence in range(len(found))], pa.large_string())


def _joined(tokens: Tokens, pieces: Tokens, emptied: npt.NDArray[np.bool_]) -> Tokens:
    """Both one after another; of the first, those that are ``emptied`` without their tokens."""
    ids: npt.NDArray[Any] = np.concatenate((tokens.ids[~np.repeat(emptied, tokens.lengths)], pieces.ids))
    before = len(tokens.lengths)
    return Tokens(
        ids,
        np.concatenate((np.where(emptied, 0, tokens.lengths), pieces.lengths)).astype(np.int32),
        tokens.rows,
        np.concatenate((np.where(emptied, 0, tokens.dropped), pieces.dropped)).astype(np.int32),
        {**tokens.failed, **{before + index: reason for index, reason in pieces.failed.items()}},
    )


@dataclass(frozen=True)
class _Flat:
    """The chunks of all distinct texts, text after text: ``counts`` of each, and of each chunk its sequence and place."""

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
    """The chunks of rows that hold these texts, and the sequence of each chunk."""
    counts = flat.counts[rows]
    source = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = (np.cumsum(flat.counts) - flat.counts)[rows][source] + within
    return Chunks(source, flat.number[at].astype(np.int32), flat.start[at], flat.end[at]), flat.sequence[at]


def join_parts(vectors: npt.NDArray[np.float32], tokens: Tokens, failed: dict[int, str], normalized: bool) -> None:
    """Fills in the vectors of texts that are means of others, float32 ``[u, dimension]``, in place.

    Args:
        vectors: of all sequences.
        tokens: which are means of which.
        failed: the reason of those that have no vector; a mean of such a one is added to them.
        normalized: whether means are to have length 1.
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
