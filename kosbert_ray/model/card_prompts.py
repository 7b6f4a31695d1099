"""Prompts that model cards ask for and that the models' configs do not name.

They are for messages only and are never applied: a corpus may be embedded for another purpose, and a later revision of a
model may name its prompts itself.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co/"
E5 = ("query: ", "passage: ")
NOMIC = ("search_query: ", "search_document: ")
RURI = ("クエリ: ", "文章: ")
RURI_V3 = ("検索クエリ: ", "検索文書: ")
BGE_EN = ("Represent this sentence for searching relevant passages: ", "")
BGE_ZH = ("为这个句子生成表示以用于检索相关文章：", "")
CODE_RANK = ("Represent this query for searching relevant code: ", "")

# Prompts for queries and for documents, by hub name. The source of each is the model's card, at ``HUB`` + name.
CARDS: dict[str, tuple[str, str]] = {
    "intfloat/e5-small": E5,
    "intfloat/e5-base": E5,
    "intfloat/e5-large": E5,
    "intfloat/e5-small-v2": E5,
    "intfloat/e5-base-v2": E5,
    "intfloat/e5-large-v2": E5,
    "intfloat/multilingual-e5-small": E5,
    "intfloat/multilingual-e5-base": E5,
    "intfloat/multilingual-e5-large": E5,
    "nlpai-lab/KoE5": E5,
    "dragonkue/multilingual-e5-small-ko": E5,
    "dragonkue/multilingual-e5-small-ko-v2": E5,
    "exp-models/dragonkue-KoEn-E5-Tiny": E5,
    "nomic-ai/nomic-embed-text-v1": NOMIC,
    "nomic-ai/nomic-embed-text-v1.5": NOMIC,
    "nomic-ai/CodeRankEmbed": CODE_RANK,
    "cl-nagoya/ruri-small": RURI,
    "cl-nagoya/ruri-base": RURI,
    "cl-nagoya/ruri-large": RURI,
    "cl-nagoya/ruri-small-v2": RURI,
    "cl-nagoya/ruri-base-v2": RURI,
    "cl-nagoya/ruri-large-v2": RURI,
    "cl-nagoya/ruri-v3-30m": RURI_V3,
    "cl-nagoya/ruri-v3-70m": RURI_V3,
    "cl-nagoya/ruri-v3-130m": RURI_V3,
    "cl-nagoya/ruri-v3-310m": RURI_V3,
    "BAAI/bge-small-en-v1.5": BGE_EN,
    "BAAI/bge-base-en-v1.5": BGE_EN,
    "BAAI/bge-large-en-v1.5": BGE_EN,
    "BAAI/bge-small-zh-v1.5": BGE_ZH,
    "BAAI/bge-base-zh-v1.5": BGE_ZH,
    "BAAI/bge-large-zh-v1.5": BGE_ZH,
    "WhereIsAI/UAE-Large-V1": BGE_EN,
}


@dataclass(frozen=True)
class CardPrompts:
    """The prompts that a model's card asks for; empty for none.

    Attributes:
        query: the prompt for queries.
        document: the prompt for documents.
        source: address of the card.
    """

    query: str = ""
    document: str = ""
    source: str = ""


def card_prompts(model: str) -> CardPrompts:
    """Looks up a model by name.

    Args:
        model: a hub name, or a folder or URL that ends in one, such as ``s3://models/intfloat/e5-base-v2``. The content of
            a folder does not count: a config or a card that names a base model does not tell how it was trained further.
    """
    name = "/".join(model.rstrip("/").split("/")[-2:]).lower()
    for known, (query, document) in CARDS.items():
        if known.lower() == name:
            return CardPrompts(query, document, HUB + known)
    return CardPrompts()
