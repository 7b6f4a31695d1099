"""Texts to token ids, exactly as sentence-transformers would cut and tokenise them, each distinct text once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from kosbert_ray.encoder.packing import Tokens
from kosbert_ray.encoder.spec import ModelSpec
from kosbert_ray.errors import ModelError

UINT16_VOCABULARY = 2**16


class Tokenizer:
    """A model's tokenizer with its truncation, lower-casing and prompt settled.

    Args:
        spec: the model it belongs to.

    Raises:
        ModelError: the tokenizer's files cannot be loaded.
    """

    def __init__(self, spec: ModelSpec) -> None:
        from transformers import AutoTokenizer

        try:
            self._hf: Any = AutoTokenizer.from_pretrained(spec.transformer, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{spec.transformer}: cannot load the tokenizer ({str(error).splitlines()[0]})") from error
        self.prompt = spec.prompt
        self._special = self._hf.num_special_tokens_to_add()
        self._max_length = spec.max_seq_length
        self._dtype = np.uint16 if len(self._hf) <= UINT16_VOCABULARY else np.int32
        self._fast: Any = getattr(self._hf, "backend_tokenizer", None)
        if self._fast is not None:
            if spec.do_lower_case:
                self._lower_case()
            self._fast.no_padding()
            self._fast.enable_truncation(spec.max_seq_length, direction=self._hf.truncation_side)

    def _lower_case(self) -> None:
        from tokenizers.normalizers import Lowercase, Sequence

        before = self._fast.normalizer
        self._fast.normalizer = Sequence([Lowercase(), before] if before is not None else [Lowercase()])

    @property
    def prompt_length(self) -> int:
        """Tokens at a sequence's start that belong to the prompt, a leading special token included."""
        if not self.prompt:
            return 0
        ids = self._hf(self.prompt)["input_ids"]
        return len(ids) - (ids[-1] in self._hf.all_special_ids)

    def __call__(self, texts: list[str] | pa.Array) -> Tokens:
        """Tokenises ``n`` texts without nulls, each distinct one once."""
        array = pa.array(texts, pa.large_string()) if isinstance(texts, list) else texts
        encoded = array.dictionary_encode()
        distinct = [self.prompt + text for text in encoded.dictionary.to_pylist()]
        sequences, dropped = self._encode(distinct)
        lengths = np.fromiter(map(len, sequences), np.int32, len(sequences))
        ids = np.empty(int(lengths.sum()), self._dtype)
        end = 0
        for sequence in sequences:
            ids[end : end + len(sequence)] = sequence
            end += len(sequence)
        return Tokens(ids, lengths, encoded.indices.to_numpy().astype(np.int32), dropped)

    def _encode(self, texts: list[str]) -> tuple[list[list[int]], np.ndarray[Any, np.dtype[np.int32]]]:
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(texts)
            # What was cut off comes back as further encodings, each with the special tokens again.
            dropped = [sum(len(rest.ids) - self._special for rest in item.overflowing) for item in encodings]
            return [item.ids for item in encodings], np.array(dropped, np.int32)
        whole = self._hf(texts, verbose=False)["input_ids"] if texts else []
        cut = self._hf(texts, truncation=True, max_length=self._max_length)["input_ids"] if texts else []
        return cut, np.array([len(a) - len(b) for a, b in zip(whole, cut, strict=True)], np.int32)
