"""Characteristic terms of clusters: words that are frequent in one cluster and rare in the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORD = r"(?u)\b[^\W\d_]\w+\b"  # at least two characters, the first a letter: numbers carry little meaning


def top_terms(documents: Sequence[str], count: int) -> list[list[str]]:
    """Returns the ``count`` most characteristic words of each document, where a document is all texts of one cluster.

    Words are split at spaces and punctuation and not stemmed, so the language does not matter.

    Source: Grootendorst 2022, class-based TF-IDF (arXiv:2203.05794).
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=WORD, lowercase=True)
    try:
        counts = counter.fit_transform(documents)
    except ValueError:  # no document contains a word
        return [[] for _ in documents]
    words = counter.get_feature_names_out()
    average = counts.sum() / max(1, len(documents))
    weights = counts.multiply(np.log1p(average / np.asarray(counts.sum(0)))).tocsr()
    terms = []
    for row in range(weights.shape[0]):
        start, end = weights.indptr[row], weights.indptr[row + 1]
        columns, values = weights.indices[start:end], weights.data[start:end]
        best = np.lexsort((columns, -values))[:count]
        terms.append([str(words[column]) for column in columns[best]])
    return terms
