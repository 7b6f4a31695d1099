"""Queries of ColBERT-like models, which are cut, extended and filtered in another way than documents.

Source: sentence-transformers 6, ``Transformer.preprocess`` and ``MultiVectorMask``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kosbert_ray.encoder.packing import Batch, Int64, Pack, Tokens
from kosbert_ray.encoder.tokenizer import transformers_tokenizer
from kosbert_ray.errors import ModelError
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.model.vector_heads import Expansion


def are_different(spec: ModelSpec) -> bool:
    """Returns True if a model makes the token vectors of queries in another way than those of documents."""
    head = spec.multi_vector
    return head is not None and bool(head.expansion or head.skiplist or head.query_skiplist)


def query_pack(spec: ModelSpec) -> Pack:
    """Returns what splits queries into batches: each query is one, its tokens and then those that the model adds.

    Raises:
        ModelError: the tokenizer does not have the token that queries are extended with.
    """
    assert spec.multi_vector is not None
    expansion = spec.multi_vector.expansion
    token = expansion_id(spec, expansion) if expansion else 0

    def pack(tokens: Tokens, token_budget: int, texts: Int64 | None = None) -> Iterator[Batch]:
        del token_budget
        every = np.split(tokens.ids.astype(np.int64), np.cumsum(tokens.lengths)[:-1])
        for number in range(len(every)) if texts is None else texts.tolist():
            ids = every[number]
            own = len(ids)
            if expansion and own < expansion.length:
                ids = np.concatenate([ids, np.full(expansion.length - own, token, np.int64)])
            attended = own if expansion and not expansion.attend and own < len(ids) else None
            positions = np.arange(len(ids), dtype=np.int64)
            yield Batch(ids, positions, ((0, 1, len(ids)),), np.array([number]), query=True, attended=attended)

    return pack


def expansion_id(spec: ModelSpec, expansion: Expansion) -> int:
    """Returns the id of the token that queries are extended with; raises ModelError if the tokenizer has none."""
    tokenizer = transformers_tokenizer(spec)
    known = tokenizer.get_vocab()
    name = expansion.token or tokenizer.mask_token
    if name not in known:
        raise ModelError(f"{spec.folder}: its queries are extended with {name}, which is not a token of its tokenizer")
    return int(known[name])
