"""Splitting of long texts: positions are exact in any normal form, nothing is lost, no character is split."""

from __future__ import annotations

import random
import unicodedata
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import regex
from conftest import TINY, everyday
from hypothesis import given, settings
from hypothesis import strategies as st
from models import save_model

from kosbert_ray.encoder.chunks import cut, levels_of, splitter_version
from kosbert_ray.encoder.long_text import LongText
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.model.spec import read_spec


def long_text(size: int = 40, overlap: int = 0, splitter: str = "words", policy: str = "chunk") -> LongText:
    return LongText(policy, size, overlap, splitter, False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(read_spec(Path(TINY)))


def article(sentences: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).sample(everyday(), sentences))


def chunks(texts: list[str], tokenizer: Tokenizer, how: LongText) -> list[list[tuple[int, int]]]:
    found = how(tokenizer, pa.array(texts, pa.large_string())).chunks
    spans: list[list[tuple[int, int]]] = [[] for _ in texts]
    for source, number, start, end in zip(found.source, found.number, found.start, found.end, strict=True):
        assert number == len(spans[source])
        spans[source].append((int(start), int(end)))
    return spans


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_places_are_exact_in_every_normal_form(tmp_path: Path, kind: str, form: str) -> None:
    """WordPiece, byte-level BPE and Unigram: a chunk is the text between its positions, and holds whole characters."""
    tokenizer = Tokenizer.load(read_spec(save_model(kind, everyday(), tmp_path)))
    text = unicodedata.normalize(form, "👩‍👩‍👧‍👦 " + article(30) + " 나는" + "아주" * 100 + "긴낱말🏳️‍🌈" * 20)
    characters = {match.start() for match in regex.finditer(r"\X", text)} | {len(text)}
    spans = chunks([text], tokenizer, long_text(24))[0]
    assert len(spans) >= 10
    covered = set()
    for start, end in spans:
        assert start in characters and end in characters
        assert text[start:end] == text[start:end].strip() != ""
        assert len(tokenizer([text[start:end]]).ids) <= 24
        covered |= {*range(start, end)}
    assert "".join(text[place] for place in range(len(text)) if place not in covered).strip() == ""
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_chunks_are_filled_and_end_between_words(tokenizer: Tokenizer) -> None:
    text = article(40)
    spans = chunks([text], tokenizer, long_text(60))[0]
    for start, end in spans:
        assert (start == 0 or text[start - 1].isspace()) and (end == len(text) or text[end].isspace())
    tokens = [len(tokenizer([text[start:end]]).ids) for start, end in spans]
    assert min(tokens[:-1]) > 50 and max(tokens) <= 60


def test_chunks_overlap_by_what_was_asked_for(tokenizer: Tokenizer) -> None:
    text = article(40)
    spans = chunks([text], tokenizer, long_text(60, overlap=20))[0]
    shared = [len(tokenizer([text[other[0] : one[1]]]).ids) - 2 for one, other in pairwise(spans)]
    assert min(shared) > 0 and max(shared) <= 20 and sum(shared) / len(shared) > 14
    ends = [end for _, end in spans]
    assert ends == sorted(set(ends)) and ends[-1] == len(text)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_kiwi_cuts_between_sentences(tokenizer: Tokenizer, form: str) -> None:
    pytest.importorskip("kiwipiepy")
    assert splitter_version("kiwi").startswith("kiwipiepy ")
    sentences = [sentence for sentence in everyday() if sentence.endswith(".")][:40]
    text = unicodedata.normalize(form, " ".join(sentences))
    spans = chunks([text], tokenizer, long_text(100, splitter="kiwi"))[0]
    assert len(spans) > 3
    ends = sum(text[start:end].endswith(".") for start, end in spans)
    assert ends >= len(spans) - (1 if form == "NFC" else 3)


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from("가나다각각한국 \n\t.e\u0301👩‍🌈"), max_size=200),
    st.integers(1, 12),
    st.integers(0, 11),
)
def test_any_text_is_covered_and_the_end_is_reached(text: str, room: int, overlap: int) -> None:
    tokens = [(place, place + 1) for place, character in enumerate(text) if not character.isspace()]
    spans = list(cut(text, tokens, room, min(overlap, room - 1), levels_of(text, "words")))
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(text[place].isspace() for place in range(len(text)) if place not in covered)
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in pairwise(spans))


def test_texts_that_fit_are_one_chunk(tokenizer: Tokenizer) -> None:
    texts = ["짧은 글", article(30), "짧은 글", "또 하나 "]
    spans = chunks(texts, tokenizer, long_text(40))
    assert spans[0] == spans[2] == [(0, 4)] and spans[3] == [(0, 5)] and len(spans[1]) > 5


def test_equal_chunks_are_one_sequence(tokenizer: Tokenizer) -> None:
    text = article(30)
    found = long_text(40)(tokenizer, pa.array([text, text, text + " 끝"], pa.large_string()))
    rows = found.tokens.rows
    each = len(rows) // 3
    assert rows[:each].tolist() == rows[each : 2 * each].tolist()
    assert len(found.tokens.lengths) < len(rows) / 2 and found.split == 3
