"""Terms of clusters: words that distinguish a cluster, not words that all of them share."""

from __future__ import annotations

import sys

import pytest

from kosbert_ray.analysis.terms import top_terms


def test_distinctive_words_come_before_shared_ones() -> None:
    clusters = [
        ["서울 날씨 좋다", "서울 날씨 흐리다", "서울"],
        ["서울 축구 경기", "축구 서울 서울"],
        ["서울 주식 시장", "서울 서울"],
    ]
    found = top_terms(clusters, 2)
    assert found[0][0] == "날씨"
    assert found[1][0] == "축구"
    assert set(found[2]) == {"주식", "시장"}


@pytest.mark.parametrize("installed", [True, False])
def test_korean_words_are_nouns_where_kiwi_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "kiwipiepy", None)
    clusters = [
        ["결제가 안 되는데 어떻게 하나요?", "그리고 결제를 취소했습니다", "결제는 카드로 합니다"],
        ["배송이 늦어요", "배송은 언제 되나요? 그리고 배송을 바꿀게요", "Where is the delivery? iPhone"],
    ]
    found = top_terms(clusters, 4)
    if installed:
        assert found[0][0] == "결제" and found[1][0] == "배송"
        assert {"iphone", "delivery"} & {*found[1]}
    else:
        assert {"결제가", "결제를", "결제는"} & {*found[0]}
    assert not {"그리고", "합니다", "the", "is", "하나요"} & {*found[0], *found[1]} - (
        {"하나요"} if not installed else set()
    )


def test_texts_without_words_have_no_terms() -> None:
    assert top_terms([["12 3"], ["?!"]], 3) == [[], []]
    assert top_terms([["단어 있다"], ["?!"], []], 3)[1:] == [[], []]
