"""Late chunking: chunks of a text are pooled from its token vectors, so that each vector knows the text around its chunk.

A text is encoded in windows of whole chunks, each as a sequence of its own with prompt and special tokens. The first chunk
of a window has the tokens in front of it, the last those behind it; other chunks have the tokens that share a character
with them. Source: Günther et al. 2024 (arXiv:2409.04701).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.chunks import Span
from kosbert_ray.encoder.collected import DenseRows
from kosbert_ray.encoder.packing import Batch, Int64, Spans, Tokens
from kosbert_ray.encoder.tokenizer import Tokenizer

WINDOW_SHARE = 4  # by default at least so many chunks fit into a window
MAX_DEFAULT_SIZE = 256  # tokens of a chunk, as in the paper


def default_size(window: int) -> int:
    """Returns the default number of tokens in a chunk.

    Args:
        window: number of tokens that the model takes.
    """
    return min(MAX_DEFAULT_SIZE, max(1, window // WINDOW_SHARE))


def windows(tokenizer: Tokenizer, texts: Sequence[str], chunks: Sequence[Sequence[Span]]) -> Tokens:
    """Tokenizes texts in windows.

    Args:
        tokenizer: the model's tokenizer.
        texts: the texts.
        chunks: ``(start, end)`` of the chunks of each, in order.

    Returns:
        A sequence per window, with a span and a row per chunk, text by text.
    """
    found = [window for text, spans in zip(texts, chunks, strict=True) for window in _of_text(tokenizer, text, spans)]
    spans = np.concatenate([np.empty((0, 2), np.int32), *(window.spans for window in found)]).astype(np.int32)
    return Tokens(
        np.concatenate([np.empty(0, tokenizer.id_type), *(window.ids for window in found)]),
        np.array([len(window.ids) for window in found], np.int32),
        (len(found) + np.arange(len(spans))).astype(np.int32),
        np.array([window.dropped for window in found], np.int32),
        span_of=np.repeat(np.arange(len(found)), [len(window.spans) for window in found]).astype(np.int32),
        span_start=spans[:, 0],
        span_end=spans[:, 1],
    )


@dataclass(frozen=True)
class _Window:
    """A window of a text.

    Attributes:
        ids: its tokens, special ones and the prompt's included: uint16 or int32 ``[T]``.
        dropped: number of tokens that truncation removed, where a chunk alone is too long.
        spans: the tokens of each chunk, int64 ``[chunks, 2]``.
    """

    ids: npt.NDArray[Any]
    dropped: int
    spans: Int64


def _of_text(tokenizer: Tokenizer, text: str, chunks: Sequence[Span]) -> Iterator[_Window]:
    """Yields the windows of a text."""
    places = tokenizer.places([text])[0]
    room = tokenizer.max_tokens - tokenizer.overhead
    excess = 1
    while excess:
        groups = list(_filled(chunks, places, room))
        encodings = tokenizer.encodings([text[group[0][0] : group[-1][1]] for group in groups])
        dropped = [tokenizer.dropped(item) for item in encodings]
        # A word at the start of a window may have more tokens than within its text.
        excess = max((count for count, group in zip(dropped, groups, strict=True) if len(group) > 1), default=0)
        room -= excess
    for group, encoding, count in zip(groups, encodings, dropped, strict=True):
        shift = len(tokenizer.prompt) - group[0][0]
        yield _Window(np.array(encoding.ids, tokenizer.id_type), count, _token_spans(encoding, group, shift))


def _filled(chunks: Sequence[Span], places: Sequence[Span], room: int) -> Iterator[Sequence[Span]]:
    """Yields the chunks of each window: as many as fit, and at least one.

    Args:
        chunks: ``(start, end)`` of each chunk.
        places: ``(start, end)`` of each token of the text.
        room: maximum number of tokens in a window, without special tokens and the prompt's.
    """
    firsts, ends = _overlapping(places, chunks).T
    at = 0
    while at < len(chunks):
        stop = max(at + 1, int(np.searchsorted(ends, firsts[at] + room, side="right")))
        yield chunks[at:stop]
        at = stop


def _token_spans(encoding: Any, chunks: Sequence[Span], shift: int) -> Int64:
    """Returns the tokens that each chunk of a window is pooled from, int64 ``[chunks, 2]``.

    Args:
        encoding: the window's tokens.
        chunks: ``(start, end)`` of each chunk in its text.
        shift: how much further back the same character is in the tokenized string.
    """
    spans = _overlapping(encoding.offsets, np.array(chunks, np.int64) + shift)
    spans[0, 0], spans[-1, 1] = 0, len(encoding.ids)
    # A chunk without tokens takes the one before it, or the first.
    spans[:, 1] = np.maximum(spans[:, 1], 1)
    spans[:, 0] = np.minimum(spans[:, 0], spans[:, 1] - 1)
    return spans


def _overlapping(places: Sequence[Span], spans: Sequence[Span] | Int64) -> Int64:
    """Returns the range of tokens that share a character with each span, int64 ``[spans, 2]``.

    Args:
        places: ``(start, end)`` of each token; special tokens have (0, 0).
        spans: ``(start, end)`` in the same string.
    """
    # The offsets of some normalizers step back by a character now and then.
    begins, ends = np.maximum.accumulate(np.array(places, np.int64).reshape(-1, 2)).T
    starts, stops = np.array(spans, np.int64).T
    return np.stack((np.searchsorted(ends, starts, side="right"), np.searchsorted(begins, stops, side="left")), axis=1)


@dataclass(frozen=True)
class LateVectors:
    """The vectors of a slice in which texts may have spans.

    Attributes:
        tokens: the slice.
        skip: leading tokens of a sequence to leave out of pooling.
    """

    tokens: Tokens
    skip: int

    @cached_property
    def _counts(self) -> Int64:
        """Number of spans of each text, int64 ``[u]``."""
        return np.bincount(self.tokens.span_of, minlength=len(self.tokens.lengths))

    def of(self, texts: Int64) -> tuple[Int64, Int64]:
        """Returns the vectors of some texts: their indices as in ``Tokens.rows``, and for each the position of its text.

        Args:
            texts: int64 ``[k]``.
        """
        spans = self._counts[texts]
        counts = np.maximum(spans, 1)
        firsts = np.where(spans, len(self._counts) + (np.cumsum(self._counts) - self._counts)[texts], texts)
        owner = np.repeat(np.arange(len(texts)), counts)
        return firsts[owner] + np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner], owner

    def with_spans(self, batch: Batch) -> Batch:
        """Returns a batch with the tokens of its vectors, or the same batch if none of its texts has spans."""
        if not self._counts[batch.texts].any():
            return batch
        numbers, owner = self.of(batch.texts)
        offsets = batch.offsets.astype(np.int64)
        starts = np.concatenate((np.zeros_like(self._counts), self.tokens.span_start))[numbers]
        ends = np.concatenate((self.tokens.lengths, self.tokens.span_end)).astype(np.int64)[numbers]
        starts = np.minimum(np.maximum(starts, self.skip), ends - 1)
        return replace(batch, spans=Spans(offsets[owner] + starts, ends - starts))

    def rows(self, dimension: int) -> LateRows:
        """Returns an empty collection of the slice's vectors."""
        return LateRows(self, dimension)


class LateRows(DenseRows):
    """Collects dense vectors of texts and spans.

    Attributes:
        vectors: float32 ``[u + s, dimension]``, in the order of ``Tokens.rows``; zeros where there is none.
    """

    def __init__(self, late: LateVectors, dimension: int) -> None:
        super().__init__(len(late.tokens.lengths) + len(late.tokens.span_of), dimension)
        self._late = late

    def finite(self, texts: Int64, found: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Returns which texts have finite vectors only.

        Args:
            texts: int64 ``[k]``.
            found: float32, the vectors of the first text, then of the second, and so on.
        """
        _, owner = self._late.of(texts)
        good = np.ones(len(texts), bool)
        np.logical_and.at(good, owner, np.isfinite(found).all(axis=1))
        return good

    def put(self, texts: Int64, found: npt.NDArray[np.float32], good: npt.NDArray[np.bool_]) -> None:
        """Stores the vectors of the texts for which ``good`` is true."""
        numbers, owner = self._late.of(texts)
        super().put(numbers, found, good[owner])
