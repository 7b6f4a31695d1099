"""Prompts: text put before queries and documents, resolved as sentence-transformers resolves it, and messages about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.model.card_prompts import card_prompts
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.settings import set_argument

QUERY, DOCUMENT = "query", "document"  # the names that encode_query and encode_document look up
# Parts of the names that published models give to prompts for documents: search_document, retrieval_passage.
DOCUMENT_NAMES = (DOCUMENT, "passage", "corpus")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a model, by sentence-transformers' methods; empty for none.

    Attributes:
        encode: the prompt of ``encode``: the model's default prompt.
        query: the prompt of ``encode_query``.
        document: the prompt of ``encode_document``.
        own: the prompts in the model's config that are not empty, by name.
        given: whether options set the prompt, which is then the same for all methods.
    """

    encode: str = ""
    query: str = ""
    document: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
    given: bool = False

    def described(self, used: str) -> str:
        """Describes the prompt that documents get, in a few words; if none, names the model's own but those for queries."""
        if used:
            name = next((name for name, text in self.own.items() if text == used), "")
            return f"{used!r} (the model's {name!r})" if name else repr(used)
        others = [name for name in self.own if QUERY not in name.lower()]
        return f"none; the model has {', '.join(map(repr, others))} (model.prompt_name)" if others else "none"

    def document_warning(self, model: str) -> str | None:
        """Returns a message if documents get no prompt although the model seems to want one, else None.

        Args:
            model: the model's name.
        """
        if self.given or self.document:
            return None
        default = {name for name, text in self.own.items() if text == self.encode and QUERY not in name.lower()}
        for name in self.own:
            if name in default or any(part in name.lower() for part in DOCUMENT_NAMES):
                use, confirm = f"--set model.prompt_name={shlex.quote(name)}", set_argument("model.prompt", "")
                return (
                    f"{model}: documents get no prompt, as in sentence-transformers' encode_document, which does not use "
                    f"the model's {name!r}; add {use} to use it, or {confirm} to confirm"
                )
        card = card_prompts(model)
        if not card.document:
            return None
        remedy = set_argument("model.prompt", card.document)
        return f"{model}: its card asks for a prompt before documents; add {remedy} ({card.source})"

    def query_warning(self, model: str, documents: str) -> str | None:
        """Returns a message if the prompts of queries and documents do not seem to fit together, else None.

        Args:
            model: the model's name.
            documents: the prompt that the documents were embedded with.
        """
        if self.given:
            return None
        if self.query:
            missing = self.own.get(DOCUMENT)
            if documents or not missing:
                return None
            return (
                f"the documents were embedded without the model's document prompt {missing!r}, but queries get its query "
                "prompt; embed them again, or add --prompt '' to search without prompts"
            )
        card = card_prompts(model)
        if card.query:
            remedy = f"--prompt {shlex.quote(card.query)}"
            return f"{model}: its card asks for a prompt before queries; add {remedy} ({card.source})"
        for name in self.own:
            if QUERY in name.lower():
                return (
                    f"{model}: queries get no prompt, as in sentence-transformers' encode_query, which does not use the "
                    f"model's {name!r}; add --prompt-name {shlex.quote(name)} to use it, or --prompt '' to confirm"
                )
        if documents:
            return (
                f"the documents were embedded with the prompt {documents!r}, and the model names none for queries; add "
                "--prompt, or --prompt '' to confirm"
            )
        return None


def read_prompts(folder: Path, settings: Mapping[str, Any], options: SpecOptions) -> Prompts:
    """Resolves the prompts of a model.

    Like sentence-transformers, ``encode_query`` and ``encode_document`` take the prompts named "query" and "document" and
    nothing else: every model has these two, empty unless its config has a text for them. So the other names that
    ``encode_document`` lists ("passage", "corpus") are never reached, and the default prompt applies to ``encode`` only.

    Args:
        folder: the model, for messages.
        settings: the content of its config_sentence_transformers.json.
        options: whose prompt or prompt name wins over the model's.

    Raises:
        UsageError: the model does not have the prompt that the user asks for.
        ModelError: it does not have its own default prompt.
    """
    texts = {str(name): text or "" for name, text in (settings.get("prompts") or {}).items()}
    own = {name: text for name, text in texts.items() if text}
    chosen = options.prompt
    if chosen is None and options.prompt_name:
        if options.prompt_name not in texts:
            raise UsageError(_unknown(folder, options.prompt_name, texts))
        chosen = texts[options.prompt_name]
    if chosen is not None:
        return Prompts(chosen, chosen, chosen, own, given=True)
    every = {QUERY: "", DOCUMENT: "", **texts}
    default = settings.get("default_prompt_name")
    if default is not None and default not in every:
        raise ModelError(_unknown(folder, default, texts))
    encode = "" if default is None else every[default]
    return Prompts(encode, every[QUERY], every[DOCUMENT], own)


def _unknown(folder: Path, name: str, known: Mapping[str, str]) -> str:
    return f"{folder}: the model has no prompt {name!r}; it has {', '.join(map(repr, known)) or 'none'}"
