"""Vectors that are known before a slice is encoded: those of texts that stand in several slices (``dedup: corpus``).

Which they are travels with Ray (16 bytes a text); the vectors lie in a file of their node, of which only what is looked up
comes into memory.
"""

from __future__ import annotations

import contextlib
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
import ray
import xxhash
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kosbert_ray.encoder.source import filled_once
from kosbert_ray.errors import InputError
from kosbert_ray.shards.format import EmbeddingFormat
from kosbert_ray.storage import Storage

DIGEST_BYTES = 16
HASH = "hash"
VECTORS_FILE, DIGEST_FILE = "vectors.float32", "vectors.xxh128"
BLOCK_BYTES = 4 * 2**20
FILLS = 3  # tries, while other processes of the node fill and check the same file

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


def hashes_of(texts: pa.Array) -> pa.Array:
    """BLAKE2b of each text's UTF-8, 16 bytes: ``fixed_size_binary[16]``."""
    digests = [hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest() for text in texts.to_pylist()]
    return pa.array(digests, pa.binary(DIGEST_BYTES))


def halves(hashes: pa.Array) -> tuple[UInt64, UInt64]:
    """Each hash as two numbers, uint64 ``[n]``."""
    content = np.frombuffer(hashes.buffers()[1], ">u8")
    pairs = content.reshape(-1, 2)[hashes.offset : hashes.offset + len(hashes)].astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class SharedTexts:
    """The hashes of the known texts, sorted, and which vector is each one's."""

    high: UInt64
    low: UInt64
    vectors: Int64

    @staticmethod
    def of(hashes: pa.Array) -> SharedTexts:
        """Of the known texts' hashes, in the order of their vectors."""
        high, low = halves(hashes)
        order = np.argsort(high, kind="stable")
        return SharedTexts(high[order], low[order], order.astype(np.int64))

    def find(self, texts: pa.Array) -> Int64:
        """int64 ``[n]``: which vector is each text's, and -1 where it is not known."""
        if not len(self.high) or not len(texts):
            return np.full(len(texts), -1, np.int64)
        high, low = halves(hashes_of(texts))
        at = np.minimum(np.searchsorted(self.high, high), len(self.high) - 1)
        # Of two whose first halves are the same (once in 10^19 pairs) one is not found, and encoded where it stands.
        same = (self.high[at] == high) & (self.low[at] == low)
        return np.where(same, self.vectors[at], -1)


@dataclass(frozen=True)
class SharedVectors:
    """Where the vectors of the known texts are: shards of ours, whose rows one after another are numbered from 0.

    Attributes:
        storage: the folder with the shards.
        shards: their names, in order.
        format: how they are stored: float32.
        count: of all vectors.
        key: names them on every node.
    """

    storage: Storage
    shards: tuple[str, ...]
    format: EmbeddingFormat
    count: int
    key: str

    @property
    def folder(self) -> Path:
        """Their place on a node, each user's own: others may write to the shared temporary folder, too."""
        return Path(tempfile.gettempdir()) / f"kosbert-ray-{os.getuid()}-known-{self.key}"

    def open(self) -> npt.NDArray[np.float32]:
        """float32 ``[count, dimension]``, mapped from this node's file, which the first to ask for it fills.

        A file that is not what was written (a power loss may cut it) is made again.

        Raises:
            InputError: the file cannot be made here.
        """
        try:
            for _ in range(FILLS):
                if not self.folder.is_dir():
                    self._fill()
                if self._is_whole():
                    shape = (self.count, self.format.dimension)
                    return np.memmap(self.folder / VECTORS_FILE, np.float32, "r", shape=shape)
                shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError("it does not stay as it was written")
        except OSError as error:
            needed = self.count * self.format.dimension * 4 / 2**30
            raise InputError(
                f"dedup: corpus keeps {needed:.1f} GiB of vectors at {self.folder} on each node, which cannot be written "
                f"({error.strerror or error}); make room or set dedup=slice"
            ) from error

    def _fill(self) -> None:
        with filled_once(self.folder) as partial:
            digest = xxhash.xxh3_128()
            with open(partial / VECTORS_FILE, "wb") as file:
                for name in self.shards:
                    self._append(name, file, digest)
            (partial / DIGEST_FILE).write_text(digest.hexdigest())

    def _is_whole(self) -> bool:
        """Whether the node's file is this user's and holds what was written."""
        try:
            info = (self.folder / VECTORS_FILE).stat()
            said = (self.folder / DIGEST_FILE).read_text()
        except OSError:
            return False
        if info.st_uid != os.getuid() or info.st_size != self.count * self.format.dimension * 4:
            return False
        digest = xxhash.xxh3_128()
        with open(self.folder / VECTORS_FILE, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == said

    def _append(self, name: str, file: IO[bytes], digest: Any) -> None:
        with self.storage.open(name) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(columns=[self.format.column]):
                vectors, _ = self.format.matrix(batch.column(0))
                content = np.ascontiguousarray(vectors, np.float32).data
                digest.update(content)
                file.write(content)

    def remove(self) -> None:
        """Deletes every node's copy; a node that does not answer keeps its own."""
        task: Any = ray.remote(num_cpus=0)(shutil.rmtree)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
        left = [task.options(scheduling_strategy=place).remote(self.folder, ignore_errors=True) for place in places]
        with contextlib.suppress(ray.exceptions.RayError):
            ray.wait(left, num_returns=len(left), timeout=60)
