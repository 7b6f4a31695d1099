"""Batches without padding: pure functions from token ids and a budget to batches of concatenated sequences.

A slice's distinct sequences are sorted by length and split by a token budget; a batch is one row ``[T]`` of token ids.
Sorting puts sequences of equal length side by side, so that attention and pooling process them as one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """A slice's texts as token ids, each distinct text once.

    Attributes:
        ids: uint16 (vocabularies up to 65,536) or int32 ``[T]``, the concatenated sequences.
        lengths: int32 ``[u]``, the number of tokens of each distinct text, special tokens included.
        rows: int32 ``[n]``, the index of each row's vector: below ``u`` that of a text, from ``u`` on that of a span.
        dropped: int32 ``[u]``, the number of tokens that truncation removed.
        failed: the reason for each distinct text that could not be tokenized (its length is 0), by index.
        part_of: int32 ``[p]``, texts (of length 0) whose vector is the mean of other texts' vectors.
        part: int32 ``[p]``, the other text of each pair; a mean weights its parts by their lengths.
        span_of: int32 ``[s]``, the text of each span, ascending. A text with spans has one vector for each of them, pooled
            from some of its tokens, and none of its own.
        span_start, span_end: int32 ``[s]``, the tokens of each span, counted from the start of its text.
    """

    ids: npt.NDArray[np.uint16] | Int32
    lengths: Int32
    rows: Int32
    dropped: Int32
    failed: Mapping[int, str] = field(default_factory=dict)
    part_of: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    part: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    span_of: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    span_start: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    span_end: Int32 = field(default_factory=lambda: np.empty(0, np.int32))

    def row_lengths(self) -> Int64:
        """Returns the number of tokens of each row, int64 ``[n]``; a mean counts the tokens of its parts."""
        lengths: Int64 = np.concatenate((self.lengths, self.span_end - self.span_start)).astype(np.int64)
        np.add.at(lengths, self.part_of, self.lengths[self.part])
        return lengths[self.rows]

    def row_texts(self) -> Int64:
        """Returns the text that each row's vector is computed from, int64 ``[n]``."""
        texts: Int64 = np.concatenate((np.arange(len(self.lengths)), self.span_of.astype(np.int64)))
        return texts[self.rows]


@dataclass(frozen=True)
class Spans:
    """The vectors of a batch in which a sequence may have several.

    Attributes:
        starts: int64 ``[vectors]``, the position in the batch of the first token that each vector is pooled from.
        lengths: int64 ``[vectors]``, the number of those tokens; they are consecutive and of one sequence.
    """

    starts: Int64
    lengths: Int64


@dataclass(frozen=True)
class Batch:
    """One packed batch.

    Attributes:
        ids: int64 ``[T]``.
        positions: int64 ``[T]``, restarting at 0 with each sequence.
        groups: ``(start, count, length)`` of each run of equal-length sequences, in order, covering ``[0, T)``.
        texts: int64 ``[sequences]``, the index in ``Tokens.lengths`` of each sequence.
        query: whether the texts are queries, of which token vectors are made in another way.
        attended: number of tokens that are attended to, in a batch of one sequence; None for all.
        spans: the tokens of each vector, sequence by sequence; None if each sequence has one vector.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    groups: tuple[tuple[int, int, int], ...]
    texts: npt.NDArray[np.int64]
    query: bool = False
    attended: int | None = None
    spans: Spans | None = None

    @property
    def offsets(self) -> Int32:
        """The start of each sequence, and T at the end: int32 ``[sequences + 1]``."""
        lengths = np.concatenate([np.full(count, length, np.int32) for _, count, length in self.groups])
        return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)


def take_rows(vectors: npt.NDArray[np.float32], rows: Int32) -> npt.NDArray[np.float32]:
    """Returns ``vectors[rows]``, without a copy if ``rows`` is 0, 1, 2, …"""
    return vectors if np.array_equal(rows, np.arange(len(vectors))) else vectors[rows]


def filled(batch: Batch, total: int, most: int) -> Batch:
    """Appends sequences of token 0 to a batch, so that it has ``total`` tokens.

    Args:
        batch: a batch of at most ``total`` tokens.
        total: the resulting number of tokens.
        most: length of an appended sequence; the last one may be shorter.
    """
    left = total - len(batch.ids)
    if not left:
        return batch
    groups = [(len(batch.ids), left // most, most), (total - left % most, 1, left % most)]
    positions = np.arange(left, dtype=np.int64) % most
    return Batch(
        np.concatenate([batch.ids, np.zeros(left, np.int64)]),
        np.concatenate([batch.positions, positions]),
        (*batch.groups, *(group for group in groups if group[1] * group[2])),
        batch.texts,
    )


class Pack(Protocol):
    """A function that splits a slice into batches: :func:`pack` or :func:`pack_one_length`."""

    def __call__(self, tokens: Tokens, token_budget: int, texts: Int64 | None = None) -> Iterator[Batch]:
        """Yields batches of at most ``token_budget`` tokens."""
        ...


def pack(tokens: Tokens, token_budget: int, texts: Int64 | None = None) -> Iterator[Batch]:
    """Splits a slice's sequences into batches of at most ``token_budget`` tokens. A longer sequence gets its own batch.

    The result depends on the slice and the budget only, so a slice is always computed in the same batches.

    Args:
        tokens: the slice.
        token_budget: maximum number of tokens in a batch.
        texts: indices of the texts to pack, none of length 0; None for all.
    """
    order, lengths, starts = _by_length(tokens, texts)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    first = 0
    while first < len(order):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + token_budget, side="right")) - 1)
        yield _batch(tokens.ids, starts[first:last], lengths[first:last], order[first:last])
        first = last


def pack_one_length(tokens: Tokens, token_budget: int, texts: Int64 | None = None) -> Iterator[Batch]:
    """Splits like :func:`pack`, but into batches whose sequences have equal length."""
    order, lengths, starts = _by_length(tokens, texts)
    distinct, firsts, counts = np.unique(lengths, return_index=True, return_counts=True)
    for length, first, count in zip(distinct.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        most = max(1, token_budget // length)
        for begin in range(first, first + count, most):
            end = min(begin + most, first + count)
            yield _batch(tokens.ids, starts[begin:end], lengths[begin:end], order[begin:end])


def _by_length(tokens: Tokens, texts: Int64 | None) -> tuple[Int64, Int64, Int64]:
    """Returns the texts from shortest to longest, their lengths, and the start of their tokens."""
    chosen = np.arange(len(tokens.lengths)) if texts is None else texts
    order = chosen[np.argsort(tokens.lengths[chosen], kind="stable")]
    starts = np.concatenate(([0], np.cumsum(tokens.lengths, dtype=np.int64)))[:-1]
    return order, tokens.lengths[order].astype(np.int64), starts[order]


def _batch(
    ids: npt.NDArray[np.uint16] | Int32,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    texts: npt.NDArray[np.int64],
) -> Batch:
    begins = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(begins, lengths)
    distinct, first, counts = np.unique(lengths, return_index=True, return_counts=True)
    groups = tuple(
        (int(begins[at]), int(count), int(length)) for length, at, count in zip(distinct, first, counts, strict=True)
    )
    return Batch(ids[np.repeat(starts, lengths) + positions].astype(np.int64), positions, groups, texts)


def random_batch(lengths: list[int], vocabulary: int) -> Batch:
    """Returns one batch of sequences of these lengths; the tokens are the same on each call."""
    ids = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, sum(lengths)).astype(np.int32)
    tokens = Tokens(ids, np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), np.zeros(0, np.int32))
    return next(pack(tokens, sum(lengths)))
