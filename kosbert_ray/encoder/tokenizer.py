"""Texts to token ids, exactly as sentence-transformers would cut and tokenise them, each distinct text once.

transformers knows how to read any model's tokenizer but costs seconds and 300 MB to import. So it is asked once, by the
driver, and what comes of it, the Rust tokenizer as JSON, is all that the tokenising workers need.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.errors import ModelError, first_line

UINT16_VOCABULARY = 2**16


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with its truncation, lower-casing and prompt settled. Make one with :meth:`load`; picklable.

    Attributes:
        state: the Rust tokenizer, as JSON.
        prompt: put before every text.
        prompt_length: tokens at a sequence's start that belong to the prompt, a leading special token included.
        special_tokens: how many are added to a text.
        vocabulary: number of token ids.
    """

    state: str
    prompt: str
    prompt_length: int
    special_tokens: int
    vocabulary: int

    @staticmethod
    def load(spec: ModelSpec) -> Tokenizer:
        """Reads the tokenizer of a model folder.

        Raises:
            ModelError: its files cannot be loaded, or it is written in Python (transformers' slow kind).
        """
        from tokenizers.normalizers import Lowercase, Sequence
        from transformers import AutoTokenizer

        try:
            slow: Any = AutoTokenizer.from_pretrained(
                spec.transformer, local_files_only=True, trust_remote_code=spec.remote_code
            )
        except Exception as error:
            raise ModelError(f"{spec.transformer}: cannot load the tokenizer ({first_line(error)})") from error
        fast: Any = getattr(slow, "backend_tokenizer", None)
        if fast is None:
            raise ModelError(f"{spec.transformer}: {type(slow).__name__} is a Python tokenizer; save a tokenizer.json")
        prompt_length = 0
        if spec.prompt:
            ids = slow(spec.prompt)["input_ids"]
            prompt_length = len(ids) - (ids[-1] in slow.all_special_ids)
        if spec.do_lower_case:
            before = fast.normalizer
            fast.normalizer = Sequence([Lowercase(), before] if before is not None else [Lowercase()])
        fast.no_padding()
        fast.enable_truncation(spec.max_seq_length, direction=slow.truncation_side)
        return Tokenizer(fast.to_str(), spec.prompt, prompt_length, slow.num_special_tokens_to_add(), len(slow))

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
        """Tokens that every text has beside its own: special ones and the prompt's."""
        return len(self._whole.encode(self.prompt))

    def places(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text stand in it, in code points: of all of them, without prompt and special tokens."""
        return [item.offsets for item in self._whole.encode_batch(texts, add_special_tokens=False)]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, texts: list[str] | pa.Array) -> Tokens:
        """Tokenises ``n`` texts without nulls, each distinct one once; one that fails is named in ``Tokens.failed``."""
        array = pa.array(texts, pa.large_string()) if isinstance(texts, list) else texts
        encoded = array.dictionary_encode()
        failed: dict[int, str] = {}
        encodings = self._encode([self.prompt + text for text in encoded.dictionary.to_pylist()], 0, failed)
        lengths = np.array([0 if item is None else len(item) for item in encodings], np.int32)
        # What was cut off comes back as further encodings, each with the special tokens again.
        dropped = [
            0 if item is None else sum(len(rest) - self.special_tokens for rest in item.overflowing) for item in encodings
        ]
        ids: npt.NDArray[Any] = np.empty(
            int(lengths.sum()), np.uint16 if self.vocabulary <= UINT16_VOCABULARY else np.int32
        )
        end = 0
        for item, length in zip(encodings, lengths.tolist(), strict=True):
            if length:
                ids[end : end + length] = item.ids
            end += length
        return Tokens(ids, lengths, encoded.indices.to_numpy().astype(np.int32), np.array(dropped, np.int32), failed)

    def _encode(self, texts: list[str], first: int, failed: dict[int, str]) -> list[Any]:
        """The Rust encodings of ``texts``; those that fail are found by halving, and are None and in ``failed``."""
        try:
            return list(self._rust.encode_batch_fast(texts))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            if len(texts) == 1:
                failed[first] = f"the tokenizer fails on it ({first_line(error)})"
                return [None]
        half = len(texts) // 2
        return self._encode(texts[:half], first, failed) + self._encode(texts[half:], first + half, failed)
