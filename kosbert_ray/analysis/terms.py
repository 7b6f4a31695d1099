"""What a cluster is about: the words that are frequent in its texts and rare in the others'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORD = r"(?u)\b[^\W\d_]\w+\b"  # two letters or more; a number says little


def top_terms(documents: Sequence[str], count: int) -> list[list[str]]:
    """The ``count`` most telling words of each document, which is all texts of a cluster in one.

    Words are what spaces and punctuation part; they are not stemmed, so that any language will do.

    Source: Grootendorst 2022, class-based TF-IDF (arXiv:2203.05794).
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=WORD, lowercase=True)
    try:
        counts = counter.fit_transform(documents)
    except ValueError:  # not one word in all of them
        return [[] for _ in documents]
    words = counter.get_feature_names_out()
    average = counts.sum() / max(1, len(documents))
    weights = counts.multiply(np.log1p(average / np.asarray(counts.sum(0)))).tocsr()
    found = []
    for row in range(weights.shape[0]):
        start, end = weights.indptr[row], weights.indptr[row + 1]
        columns, values = weights.indices[start:end], weights.data[start:end]
        best = np.lexsort((columns, -values))[:count]
        found.append([str(words[column]) for column in columns[best]])
    return found
