"""Vectors of texts that occur in several slices (``dedup: corpus``), known before a slice is encoded.

The hashes travel through Ray (16 bytes per text). The vectors are in one file per node, which is mapped into memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.errors import InputError
from kosbert_ray.model.source import fill_once
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.storage import Storage

DIGEST_BYTES = 16
HASH = "hash"
VECTORS_FILE, DIGEST_FILE = "vectors.float32", "vectors.xxh128"
FILLS = 3  # attempts, while other processes of the node fill and check the same file

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


def hashes_of(texts: pa.Array) -> pa.Array:
    """BLAKE2b digests of the texts in UTF-8: ``fixed_size_binary[16]``."""
    digests = [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts.to_pylist()]
    return pa.array(digests, pa.binary(DIGEST_BYTES))


def halves(hashes: pa.Array) -> tuple[UInt64, UInt64]:
    """Splits hashes into two numbers each, uint64 ``[n]``."""
    content = np.frombuffer(hashes.buffers()[1], ">u8")
    pairs = content.reshape(-1, 2)[hashes.offset : hashes.offset + len(hashes)].astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class SharedTexts:
    """Sorted hashes of the shared texts, and the index of the vector of each."""

    high: UInt64
    low: UInt64
    vectors: Int64

    @staticmethod
    def of(hashes: pa.Array) -> SharedTexts:
        """Sorts hashes that are given in the order of their vectors."""
        high, low = halves(hashes)
        order = np.argsort(high, kind="stable")
        return SharedTexts(high[order], low[order], order.astype(np.int64))

    def find(self, texts: pa.Array) -> Int64:
        """int64 ``[n]``: the index of each text's vector, -1 for texts that are not shared."""
        if not len(self.high) or not len(texts):
            return np.full(len(texts), -1, np.int64)
        high, low = halves(hashes_of(texts))
        at = np.minimum(np.searchsorted(self.high, high), len(self.high) - 1)
        # If two hashes share their first half (once in 10^19 pairs), one is not found and its text is encoded again.
        same = (self.high[at] == high) & (self.low[at] == low)
        return np.where(same, self.vectors[at], -1)


@dataclass(frozen=True)
class SharedVectors:
    """The vectors of the shared texts: consecutive rows of shards.

    Attributes:
        storage: the folder with the shards.
        shards: names of the shards, in order.
        format: how the vectors are stored: float32.
        count: number of vectors.
        key: names them on every node.
    """

    storage: Storage
    shards: tuple[str, ...]
    format: EmbeddingFormat
    count: int
    key: str

    @property
    def folder(self) -> Path:
        """Their folder on a node, separate for each user because the temporary folder is shared."""
        return Path(tempfile.gettempdir()) / f"kosbert-ray-{os.getuid()}-known-{self.key}"

    def open(self) -> npt.NDArray[np.float32]:
        """Maps this node's file, float32 ``[count, dimension]``. The first process that asks for it fills it.

        A damaged file, for example after a power loss, is written again.

        Raises:
            InputError: the file cannot be written here.
        """
        try:
            for _ in range(FILLS):
                fill_once(self.folder, self._fill)
                if self._is_whole():
                    shape = (self.count, self.format.dimension)
                    return np.memmap(self.folder / VECTORS_FILE, np.float32, "r", shape=shape)
                shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError("it keeps changing after it was written")
        except OSError as error:
            needed = self.count * self.format.dimension * 4 / 2**30
            raise InputError(
                f"dedup: corpus keeps {needed:.1f} GiB of vectors at {self.folder} on each node, which cannot be written "
                f"({error.strerror or error}); make room or set dedup=slice"
            ) from error

    def _fill(self, folder: Path) -> None:
        digest = xxhash.xxh3_128()
        with open(folder / VECTORS_FILE, "wb") as file:
            for name in self.shards:
                self._append(name, file, digest)
        (folder / DIGEST_FILE).write_text(digest.hexdigest())

    def _is_whole(self) -> bool:
        """True if the node's file belongs to this user and is undamaged."""
        try:
            info = (self.folder / VECTORS_FILE).stat()
            said = (self.folder / DIGEST_FILE).read_text()
        except OSError:
            return False
        if info.st_uid != os.getuid() or info.st_size != self.count * self.format.dimension * 4:
            return False
        digest = xxhash.xxh3_128()
        with open(self.folder / VECTORS_FILE, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest() == said

    def _append(self, name: str, file: IO[bytes], digest: Any) -> None:
        with self.storage.open(name) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(columns=[self.format.column]):
                vectors, _ = self.format.matrix(batch.column(0))
                content = np.ascontiguousarray(vectors, np.float32).data
                digest.update(content)
                file.write(content)
