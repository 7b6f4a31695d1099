"""Vectors of texts that occur in several slices (``dedup: corpus``), known before a slice is encoded.

The hashes travel through Ray (16 bytes per text). The vectors are in one file per node, which is mapped into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.model.source import node_folder
from kosbert_ray.run.node_files import fill_node_folder
from kosbert_ray.run.text_hashes import UInt64, halves, hashes_of
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import read_vectors
from kosbert_ray.storage import Storage

VECTORS_FILE = "vectors.float32"

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SharedTexts:
    """Sorted hashes of texts, and the index of the vector of each."""

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
        """Their folder on a node."""
        return node_folder(f"known-{self.key}")

    def open(self) -> npt.NDArray[np.float32]:
        """Maps this node's file, float32 ``[count, dimension]``. The first process that asks for it fills it.

        A damaged file, for example after a power loss, is written again.

        Raises:
            InputError: the file cannot be written here.
        """
        size = self.count * self.format.dimension * 4
        fill_node_folder(self.folder, self._fill, "dedup: corpus", size, "set dedup=slice")
        return np.memmap(self.folder / VECTORS_FILE, np.float32, "r", shape=(self.count, self.format.dimension))

    def _fill(self, folder: Path) -> None:
        with open(folder / VECTORS_FILE, "wb") as file:
            for name in self.shards:
                for vectors, _ in read_vectors(self.storage, name, self.format):
                    file.write(np.ascontiguousarray(vectors, np.float32).data)
