"""Characteristic terms of clusters: words that are frequent in one cluster and rare in the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

WORD = re.compile(r"\b[^\W\d_]\w+\b")  # at least two characters, the first a letter: numbers carry little meaning
HANGUL = re.compile(r"[가-힣]")
ANALYZED_CHARS = 500  # of a text: its start says what it is about, and Kiwi takes seconds for a thousand long texts
# Kiwi's tags of words with a meaning of their own: common and proper nouns, roots, foreign words.
NOUNS = ("NNG", "NNP", "XR", "SL")
# Frequent words that say nothing about a topic, as they are written where no analyzer splits off particles.
KOREAN_STOP_WORDS = frozenset(
    """
    가장 같은 같이 거의 것은 것을 것이 것이다 결국 경우 그가 그것 그녀 그는 그때 그래서 그러나 그런
    그런데 그럼 그렇게 그리고 그의 나는 나의 내가 너무 다른 다시 대한 대해 더욱 때문에 또는 또한
    많은 많이 매우 모두 모든 무슨 바로 바랍니다 싶은 아니라 아닌 아주 안녕하세요 않고 않는 않은
    어떤 어떻게 없는 없다 없이 여기 여러 오늘 왜냐하면 우리 위한 위해 이것 이것은 이다 이런 이렇게
    있고 있는 있다 있습니다 있어서 있을 있음 저는 저의 전혀 정도 정말 제가 조금 좋은 지금 진짜 통해
    특히 하고 하는 하는데 하다 하며 하면 하지만 한다 한번 할까요 함께 합니다 해서 해요 했다
    했습니다
    """.split()  # noqa: SIM905 (a list of so many words is read more easily as a text)
)


def top_terms(clusters: Sequence[Sequence[str]], count: int) -> list[list[str]]:
    """Returns the ``count`` most characteristic words of each cluster.

    Of Korean texts these are nouns of the first 500 characters, where kiwipiepy is installed; otherwise words as they are
    written. Words that are frequent in any text are left out.

    Args:
        clusters: the texts of each cluster.
        count: number of words.

    Source: Grootendorst 2022, class-based TF-IDF (arXiv:2203.05794).
    """
    from sklearn.feature_extraction.text import CountVectorizer

    words = _words([*chain.from_iterable(clusters)])
    documents = [[*chain.from_iterable(next(words) for _ in texts)] for texts in clusters]
    counter = CountVectorizer(analyzer=lambda document: document)
    try:
        counts = counter.fit_transform(documents)
    except ValueError:  # no document contains a word
        return [[] for _ in documents]
    names = counter.get_feature_names_out()
    average = counts.sum() / max(1, len(documents))
    weights = counts.multiply(np.log1p(average / np.asarray(counts.sum(0)))).tocsr()
    terms = []
    for row in range(weights.shape[0]):
        start, end = weights.indptr[row], weights.indptr[row + 1]
        columns, values = weights.indices[start:end], weights.data[start:end]
        best = np.lexsort((columns, -values))[:count]
        terms.append([str(names[column]) for column in columns[best]])
    return terms


def _words(texts: Sequence[str]) -> Iterator[list[str]]:
    """The words of each text that may say something about it."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stop_words = {*KOREAN_STOP_WORDS, *ENGLISH_STOP_WORDS}
    korean = [HANGUL.search(text) is not None for text in texts]
    kiwi = _kiwi() if any(korean) else None
    nouns = _nouns(kiwi, [*compress(texts, korean)]) if kiwi else None
    for text, is_korean in zip(texts, korean, strict=True):
        found = next(nouns) if nouns and is_korean else [word[0].lower() for word in WORD.finditer(text)]
        yield [word for word in found if word not in stop_words]


def _nouns(kiwi: Any, texts: Sequence[str]) -> Iterator[list[str]]:
    from kiwipiepy.utils import Stopwords

    for tokens in kiwi.tokenize([text[:ANALYZED_CHARS] for text in texts], stopwords=Stopwords()):
        yield [token.form.lower() for token in tokens if token.tag in NOUNS and WORD.fullmatch(token.form)]


def _kiwi() -> Any:
    """Kiwi with a thread for each core; None if it is not installed."""
    try:
        from kiwipiepy import Kiwi
    except ImportError:
        return None
    return Kiwi(num_workers=-1)
