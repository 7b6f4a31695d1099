"""Terms of clusters: words that distinguish a cluster, not words that all of them share."""

from __future__ import annotations

from kosbert_ray.analysis.terms import top_terms


def test_distinctive_words_come_before_shared_ones() -> None:
    documents = ["오늘 날씨 좋다 오늘 날씨 흐리다 오늘", "오늘 축구 경기 축구 오늘 오늘", "오늘 주식 시장 오늘 오늘"]
    found = top_terms(documents, 2)
    assert found[0][0] == "날씨"
    assert found[1][0] == "축구"
    assert set(found[2]) == {"주식", "시장"}


def test_texts_without_words_have_no_terms() -> None:
    assert top_terms(["12 3", "?!"], 3) == [[], []]
    assert top_terms(["단어 있다", "?!"], 3)[1] == []
