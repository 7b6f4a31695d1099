"""Texts to token ids, truncated and tokenized exactly as by sentence-transformers, each distinct text once.

The tokenizer of a static embedding model is read as it is, and the tokens are those without special tokens. Of others,
transformers can read any model's tokenizer but takes seconds and 300 MB to import. So the driver loads the tokenizer once
and sends the Rust tokenizer as JSON to the tokenizing workers, which need nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import read_object, sha256
from kosbert_ray.model.source import cache_entry
from kosbert_ray.model.spec import ModelSpec

COMPOSED = "한국어 문장"
BROKEN = "\N{REPLACEMENT CHARACTER}"
UINT16_VOCABULARY = 2**16
BLOCK_BYTES = 2**20  # of text that is encoded in one call
SAMPLE = "안녕하세요"
CACHED = "2"  # raise it when a cached tokenizer would differ from one that is read
PACKAGES = ("tokenizers", "transformers")  # whose versions a cached tokenizer depends on
MANY_UNKNOWN = 0.1  # share of the tokens; real Korean text has 0.01 or less


def end_notice(spec: ModelSpec, tokenizer: Tokenizer) -> str | None:
    """Returns a message for the user if a model pools the last token and its tokenizer ends texts with a word."""
    if not _pools_last(spec) or tokenizer.ends_with_special:
        return None
    return (
        f"{spec.folder} pools the last token, and its tokenizer adds no special one: the vector is that of a text's last "
        "word piece; if the model was trained with an end token, its tokenizer.json is wrong"
    )


def _pools_last(spec: ModelSpec) -> bool:
    return "lasttoken" in spec.pooling


def _append_end(spec: ModelSpec, slow: Any, fast: Any) -> None:
    """Makes a tokenizer end every text with its end-of-sequence token if its config asks for it.

    transformers 5 ignores ``add_eos_token`` where there is a tokenizer.json, so models that pool the last token
    (e5-mistral, SFR-Embedding, Linq) would pool a word. Only such models are changed: outputs have the vectors of others.
    """
    path = spec.transformer / "tokenizer_config.json"
    if not _pools_last(spec) or not path.exists() or not read_object(path).get("add_eos_token"):
        return
    end = slow.eos_token_id
    example = fast.encode(COMPOSED)
    if end is None or example.ids[-1] == end:
        return
    from tokenizers.processors import TemplateProcessing

    # A processor appended to the present one has no effect (tokenizers 0.23), so it is replaced.
    words = [number for number, special in enumerate(example.special_tokens_mask) if not special]
    before, after = example.tokens[: words[0]], [*example.tokens[words[-1] + 1 :], slow.eos_token]
    fast.post_processor = TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(token, fast.token_to_id(token)) for token in {*before, *after}]
    )


def unknown_notice(unknown: int, tokens: int) -> str | None:
    """Returns a message for the user if many tokens of a corpus are not in the model's vocabulary, else None.

    Args:
        unknown: number of unknown tokens.
        tokens: number of all tokens.
    """
    if unknown < MANY_UNKNOWN * tokens or not unknown:
        return None
    return (
        f"{unknown / tokens:.0%} of the tokens are unknown to the model, so many texts get similar vectors; try "
        "input.normalize=nfc, or a model of the corpus's language"
    )


def _segments(slow: Any) -> list[int]:
    """Returns the token_type_ids of a sample text, or nothing if the tokenizer gives none or fails."""
    try:
        return list(slow(SAMPLE).get("token_type_ids") or ())
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return []


def transformers_tokenizer(spec: ModelSpec) -> Any:
    """Returns transformers' tokenizer of a model. It raises many types of errors, and takes seconds to import."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec.transformer, local_files_only=True, trust_remote_code=spec.remote_code)


def _lacks_sentencepiece(spec: ModelSpec) -> bool:
    """Returns True if the tokenizer is only a SentencePiece model and sentencepiece is not installed."""
    names = {path.name for path in spec.tokenizer_files}
    only = not names & {"tokenizer.json", "vocab.txt", "vocab.json"} and any(name.endswith(".model") for name in names)
    return only and find_spec("sentencepiece") is None


def _unknown_id(slow: Any, state: str) -> int:
    """Returns the id of the unknown token, or -1 if there is none.

    The Rust model decides which token it is; the configuration of the tokenizer may name another one.

    Args:
        slow: transformers' tokenizer.
        state: the Rust tokenizer, as JSON.
    """
    model = json.loads(state)["model"]
    unknown = model.get("unk_id")
    if model.get("unk_token"):
        unknown = slow.backend_tokenizer.token_to_id(model["unk_token"])
    if unknown is None:
        unknown = slow.unk_token_id
    # GPT-2 and its relatives have no unknown token and report the end-of-text token instead.
    shared = (slow.pad_token_id, slow.cls_token_id, slow.sep_token_id, slow.bos_token_id, slow.eos_token_id)
    return -1 if unknown is None or unknown in shared else int(unknown)


def _cache_file(spec: ModelSpec) -> Path | None:
    """Returns the file that caches a tokenizer; None for a model with code of its own, or with a Rust tokenizer alone."""
    if spec.remote_code or spec.static:
        return None
    config = spec.transformer / "config.json"  # decides the tokenizer's class
    parts = [CACHED, sha256(spec.folder, [*spec.tokenizer_files, *([config] if config.exists() else [])])]
    parts += [spec.model_type, spec.prompt, str(spec.max_seq_length), str(spec.do_lower_case), *map(version, PACKAGES)]
    parts += [str(_pools_last(spec))]
    with contextlib.suppress(ModelError):  # no home directory
        return cache_entry("tokenizers", parts, ".json")
    return None


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with its truncation, lower-casing and prompt. Create it with :meth:`load`; picklable.

    Attributes:
        state: the Rust tokenizer, as JSON.
        prompt: text put before every text.
        prompt_length: number of leading tokens of the prompt, including a leading special token.
        special_tokens: number of special tokens added to a text.
        vocabulary: number of token ids.
        unknown_id: id of the unknown token, or -1 if there is none.
    """

    state: str
    prompt: str
    prompt_length: int
    special_tokens: int
    vocabulary: int
    unknown_id: int = -1

    @staticmethod
    def load(spec: ModelSpec) -> Tokenizer:
        """Loads the tokenizer of a model, from the cache if this machine has read it before.

        Raises:
            ModelError: as :meth:`read`.
        """
        cached = _cache_file(spec)
        if cached is not None:
            with contextlib.suppress(OSError, ValueError, TypeError):
                return Tokenizer(**json.loads(cached.read_text("utf-8")))
        tokenizer = Tokenizer.read(spec)
        if cached is not None:
            with contextlib.suppress(OSError):  # without a cache it is only slower
                cached.parent.mkdir(parents=True, exist_ok=True)
                partial = cached.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
                partial.write_text(json.dumps(tokenizer.__getstate__()), "utf-8")
                partial.replace(cached)
        return tokenizer

    @staticmethod
    def read(spec: ModelSpec) -> Tokenizer:
        """Reads the tokenizer of a model folder, with transformers unless it is a static embedding model's.

        Raises:
            ModelError: its files cannot be loaded, it is a Python ("slow") tokenizer, or it needs token_type_ids other
                than 0, which is not supported.
        """
        if spec.static:
            return _read_static(spec)
        from tokenizers.normalizers import Lowercase, Sequence

        try:
            slow = transformers_tokenizer(spec)
        except Exception as error:
            if _lacks_sentencepiece(spec):
                raise ModelError(
                    f"{spec.transformer}: its tokenizer is a SentencePiece model; pip install sentencepiece protobuf"
                ) from error
            raise ModelError(f"{spec.transformer}: cannot load the tokenizer ({first_line(error)})") from error
        fast: Any = getattr(slow, "backend_tokenizer", None)
        if fast is None:
            raise ModelError(f"{spec.transformer}: {type(slow).__name__} is a Python tokenizer; save a tokenizer.json")
        if any(_segments(slow)):
            raise ModelError(f"{spec.transformer}: its tokenizer gives token_type_ids other than 0, which is not supported")
        _append_end(spec, slow, fast)
        prompt_length = 0
        if spec.prompt:
            ids = slow(spec.prompt)["input_ids"]
            prompt_length = len(ids) - (ids[-1] in slow.all_special_ids)
        if spec.do_lower_case:
            before = fast.normalizer
            fast.normalizer = Sequence([Lowercase(), before] if before is not None else [Lowercase()])
        fast.no_padding()
        fast.enable_truncation(spec.max_seq_length, direction=slow.truncation_side)
        state, special = fast.to_str(), fast.num_special_tokens_to_add(False)
        return Tokenizer(state, spec.prompt, prompt_length, special, len(slow), _unknown_id(slow, state))

    @cached_property
    def ends_with_special(self) -> bool:
        """True if a text's last token is a special one, as models expect that are pooled by their last token."""
        return bool(self._whole.encode(COMPOSED).special_tokens_mask[-1])

    @cached_property
    def _rust(self) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        return RustTokenizer.from_str(self.state)

    @cached_property
    def _whole(self) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        whole = RustTokenizer.from_str(self.state)
        whole.no_truncation()
        return whole

    @cached_property
    def overhead(self) -> int:
        """Number of tokens that every text gets in addition: special tokens and the prompt's."""
        return len(self._whole.encode(self.prompt, add_special_tokens=self.special_tokens > 0))

    @cached_property
    def max_tokens(self) -> int:
        """Maximum number of tokens in a text, including special tokens and the prompt's."""
        return int(self._rust.truncation["max_length"])

    @property
    def id_type(self) -> type[np.uint16 | np.int32]:
        """The type of token ids."""
        return np.uint16 if self.vocabulary <= UINT16_VOCABULARY else np.int32

    def encodings(self, texts: list[str]) -> list[Any]:
        """Tokenizes texts like a call does; returns the library's encodings, whose offsets count the prompt, too."""
        texts = [self.prompt + text for text in texts]
        return list(self._rust.encode_batch(texts, add_special_tokens=self.special_tokens > 0))

    def dropped(self, encoding: Any) -> int:
        """Returns the number of tokens that truncation removed from an encoding."""
        # The truncated rest is returned as further encodings, each with its own special tokens.
        return sum(len(rest) - self.special_tokens for rest in encoding.overflowing)

    @property
    def tokens(self) -> dict[int, str]:
        """The token of each id that has one."""
        return {number: token for token, number in self._rust.get_vocab(with_added_tokens=True).items()}

    def readable(self, ids: Sequence[int]) -> list[str]:
        """Returns tokens as people read them: byte-level ones are decoded, and an id without a token is a number."""
        tokens, rust = self.tokens, self._rust
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self.state).get("decoder"))
        found = [tokens.get(number, str(number)) for number in ids]
        if not byte_level:
            return found
        decoded = [rust.decode([number], skip_special_tokens=False) for number in ids]
        # A token may be a part of a character, which cannot be decoded.
        return [text if text.strip() and BROKEN not in text else raw for text, raw in zip(decoded, found, strict=True)]

    def places(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Returns ``(start, end)`` of every token of each text, in code points. Special tokens and prompt are left out."""
        return [item.offsets for item in self._whole.encode_batch(texts, add_special_tokens=False)]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, texts: list[str] | pa.Array) -> Tokens:
        """Tokenizes ``n`` texts without nulls, each distinct text once. Texts that fail are listed in ``Tokens.failed``."""
        array = pa.array(texts, pa.large_string()) if isinstance(texts, list) else texts
        encoded = array.dictionary_encode()
        failed: dict[int, str] = {}
        ids: list[npt.NDArray[Any]] = [np.empty(0, self.id_type)]
        lengths: list[int] = []
        dropped: list[int] = []
        for block in _blocks(encoded.dictionary):
            encodings = self._encode([self.prompt + text for text in block.to_pylist()], len(lengths), failed)
            sizes = [0 if item is None else len(item) for item in encodings]
            some = np.empty(sum(sizes), self.id_type)
            end = 0
            for item, size in zip(encodings, sizes, strict=True):
                if size:
                    some[end : end + size] = item.ids
                end += size
            ids.append(some)
            lengths += sizes
            dropped += [0 if item is None else self.dropped(item) for item in encodings]
        rows = encoded.indices.to_numpy().astype(np.int32)
        return Tokens(np.concatenate(ids), np.array(lengths, np.int32), rows, np.array(dropped, np.int32), failed)

    @cached_property
    def composes(self) -> bool:
        """True if Hangul in conjoining jamo (NFD) gets the same tokens as composed syllables."""
        both = self([COMPOSED, unicodedata.normalize("NFD", COMPOSED)])
        ids = np.split(both.ids, np.cumsum(both.lengths)[:-1])
        return len(ids) == 2 and np.array_equal(ids[0], ids[1])

    def unknown(self, tokens: Tokens, texts: npt.NDArray[np.bool_] | None = None) -> int:
        """Counts unknown tokens in all distinct texts, or in those chosen by ``texts``, bool ``[u]``."""
        found = tokens.ids == self.unknown_id
        return int((found if texts is None else found & np.repeat(texts, tokens.lengths)).sum())

    def _encode(self, texts: list[str], first: int, failed: dict[int, str]) -> list[Any]:
        """Encodes texts. Failing texts are found by bisection; they give None and a reason in ``failed``."""
        try:
            return list(self._rust.encode_batch_fast(texts, add_special_tokens=self.special_tokens > 0))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            if len(texts) == 1:
                failed[first] = f"the tokenizer fails on it ({first_line(error)})"
                return [None]
        half = len(texts) // 2
        return self._encode(texts[:half], first, failed) + self._encode(texts[half:], first + half, failed)


def _blocks(texts: pa.Array) -> Iterator[pa.Array]:
    """Splits texts into blocks of about a megabyte: the library's encodings take twenty times the memory of the text."""
    blocks = max(1, texts.nbytes // BLOCK_BYTES)
    step = -(-len(texts) // blocks) or 1
    for start in range(0, len(texts), step):
        yield texts.slice(start, step)


def _read_static(spec: ModelSpec) -> Tokenizer:
    """Reads a static embedding model's tokenizer.json. Raises ModelError if it cannot be loaded."""
    from tokenizers import Tokenizer as RustTokenizer

    path = spec.tokenizer_files[0]
    try:
        rust = RustTokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path}: cannot load the tokenizer ({first_line(error)})") from error
    direction = (rust.truncation or {}).get("direction", "right")
    rust.no_padding()
    rust.enable_truncation(spec.max_seq_length, direction=direction)
    state = rust.to_str()
    model = json.loads(state)["model"]
    unknown = rust.token_to_id(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
    return Tokenizer(
        state,
        spec.prompt,
        prompt_length=len(rust.encode(spec.prompt, add_special_tokens=False)),
        special_tokens=0,
        vocabulary=max(rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        unknown_id=-1 if unknown is None else int(unknown),
    )
