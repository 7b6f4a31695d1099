"""Splits a long text at sentence boundaries, else between words, else between grapheme clusters.

Positions are Unicode code points, as in Python: ``text[start:end]`` is the chunk, whatever the text's normal form. Hangul
in conjoining jamo (NFD) is never split inside a syllable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.options import Splitter
from kosbert_ray.errors import UsageError

Places = npt.NDArray[np.int64]
Span = tuple[int, int]

NOT_SPACE = re.compile(r"\S")
WORD_START = re.compile(r"(?<=\s)(?=\S)")


def cut(text: str, tokens: Sequence[Span], room: int, overlap: int, levels: Sequence[Places]) -> Iterator[Span]:
    """Yields ``(start, end)`` of each chunk of a text, in order.

    Chunks neither begin nor end with white space. Everything except the white space between chunks is in at least one, and
    each chunk ends behind the previous one.

    Args:
        text: the text.
        tokens: ``(start, end)`` of each of its tokens, without special tokens.
        room: maximum number of tokens in a chunk.
        overlap: number of tokens that may be repeated from the previous chunk; less than ``room``.
        levels: sorted positions where the text may be split, in order of preference.
    """
    # The offsets of some normalizers step back by a character now and then.
    begins = np.maximum.accumulate(np.array([begin for begin, _ in tokens], np.int64))
    total, last = len(text.rstrip()), 0
    start = _word(text, 0)
    while max(start, last) < total:
        first = int(np.searchsorted(begins, start))
        if first + room >= len(begins):
            yield start, total
            return
        end, level = _last_place(levels, max(start, last), int(begins[first + room]))
        if end is None:  # no position within that many tokens: take the first one behind them
            end, level = _first_place(levels[-1], max(start, last), total), levels[-1]
        yield start, start + len(text[start:end].rstrip())
        behind = int(np.searchsorted(begins, end))
        back = int(begins[max(0, behind - overlap)]) if overlap and behind < len(begins) else end
        start, last = _word(text, max(start + 1, _first_place(level, back - 1, end))), _word(text, end)


def _word(text: str, start: int) -> int:
    """Returns the first position from ``start`` on without white space."""
    match = NOT_SPACE.search(text, start)
    return match.start() if match else len(text)


def _last_place(levels: Sequence[Places], after: int, most: int) -> tuple[int | None, Places]:
    for places in levels:
        index = int(np.searchsorted(places, most, side="right")) - 1
        if index >= 0 and places[index] > after:
            return int(places[index]), places
    return None, levels[-1]


def _first_place(places: Places, after: int, most: int) -> int:
    index = int(np.searchsorted(places, after, side="right"))
    return min(int(places[index]), most) if index < len(places) else most


def levels_of(text: str, splitter: Splitter) -> list[Places]:
    """Returns the positions where a text may be split, one array per level, in order of preference."""
    characters = _characters(text)
    words = np.array([match.start() for match in WORD_START.finditer(text)], np.int64)
    levels = [np.intersect1d(words, characters), characters]
    if splitter == "kiwi":
        starts = np.array([sentence.start for sentence in _kiwi().split_into_sents(text)], np.int64)
        levels.insert(0, np.intersect1d(starts, characters))
    return levels


def _characters(text: str) -> Places:
    """Returns the starts of the text's extended grapheme clusters (Unicode Standard Annex 29)."""
    import regex

    return np.array([match.start() for match in regex.finditer(r"\X", text)], np.int64)


@lru_cache(maxsize=1)
def _kiwi() -> Any:
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def splitter_version(splitter: Splitter) -> str:
    """Returns the splitter's name and version, for a job's fingerprint.

    Raises:
        UsageError: the splitter is not installed.
    """
    if splitter == "words":
        return splitter
    try:
        from kiwipiepy import __version__
    except ImportError as error:
        raise UsageError("chunk.splitter: kiwi is not installed; pip install 'kosbert-ray[kiwi]'") from error
    return f"kiwipiepy {__version__}"
