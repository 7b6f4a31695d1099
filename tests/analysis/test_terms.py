"""Words of clusters: those that are one's own, not those that all have."""

from __future__ import annotations

from kosbert_ray.analysis.terms import top_terms


def test_words_of_ones_own_come_before_words_of_all() -> None:
    documents = ["오늘 날씨 좋다 오늘 날씨 흐리다 오늘", "오늘 축구 경기 축구 오늘 오늘", "오늘 주식 시장 오늘 오늘"]
    found = top_terms(documents, 2)
    assert found[0][0] == "날씨"
    assert found[1][0] == "축구"
    assert set(found[2]) == {"주식", "시장"}


def test_texts_without_words_have_none() -> None:
    assert top_terms(["12 3", "?!"], 3) == [[], []]
    assert top_terms(["단어 있다", "?!"], 3)[1] == []
