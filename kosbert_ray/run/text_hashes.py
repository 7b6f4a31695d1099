"""Hashes of texts, by which equal texts are found."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DIGEST_BYTES = 16
HASH = "hash"
HASH_TYPE = pa.binary(DIGEST_BYTES)

UInt64 = npt.NDArray[np.uint64]


def hashes_of(texts: pa.Array) -> pa.Array:
    """BLAKE2b digests of the texts in UTF-8: ``fixed_size_binary[16]`` ``[n]``; null for null."""
    digests = [
        None if text is None else hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
        for text in texts.to_pylist()
    ]
    return pa.array(digests, HASH_TYPE)


def halves(hashes: pa.Array) -> tuple[UInt64, UInt64]:
    """Splits hashes without nulls into two numbers each, uint64 ``[n]``."""
    content = np.frombuffer(hashes.buffers()[1] or b"", ">u8")
    pairs = content.reshape(-1, 2)[hashes.offset : hashes.offset + len(hashes)].astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]
