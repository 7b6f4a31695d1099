"""The vectors of an older output, found by the hash of their texts.

Every node keeps one index of all texts, sorted by hash and mapped into memory: 24 bytes per text. The vectors are read
from the older output's shards, as a slice needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from kosbert_ray.errors import StorageError
from kosbert_ray.model.source import node_folder
from kosbert_ray.run.node_files import fill_node_folder
from kosbert_ray.run.shared_vectors import SharedTexts
from kosbert_ray.run.text_hashes import HASH, halves
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vectors import read_rows
from kosbert_ray.storage import Storage

FOLDER = "_kosbert/reuse"
PLACES = f"{FOLDER}/places"  # hashes and places of the older output's texts, in the order of their hashes
SHARDS_FILE = f"{FOLDER}/shards.parquet"  # written last: the older output's shards
PLACE, SHARD, FIRST = "place", "shard", "first"  # a row's number in the whole older output; a shard and its first row
HIGH_FILE, LOW_FILE, PLACES_FILE = "high.uint64", "low.uint64", "places.int64"
MAX_SHARDS = 64  # that are read for one slice

Vectors = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OlderVectors:
    """An older output and the index of its texts.

    Attributes:
        output: the new output, with the index.
        older: the older output.
        format: how the vectors to reuse are stored there.
        texts: number of texts in the index.
        files: names of its files, in order, and their XXH128.
        key: names the index on every node.
    """

    output: Storage
    older: Storage
    format: EmbeddingFormat
    texts: int
    files: tuple[tuple[str, str], ...]
    key: str

    @property
    def folder(self) -> Path:
        """The index's folder on a node."""
        return node_folder(f"reuse-{self.key}")

    def open(self) -> OlderIndex:
        """Opens this node's index. The first process that asks for it copies it there.

        Raises:
            InputError: it cannot be written here.
        """
        return _opened(self)

    def fill(self, folder: Path) -> None:
        """Copies the index to a folder; raises StorageError if a file is damaged."""
        with (
            open(folder / HIGH_FILE, "wb") as highs,
            open(folder / LOW_FILE, "wb") as lows,
            open(folder / PLACES_FILE, "wb") as places,
        ):
            for name, digest in self.files:
                content = self.output.read(name)
                if xxhash.xxh3_128_hexdigest(content) != digest:
                    raise StorageError(
                        f"{self.output.url(name)}: damaged; delete the folder {FOLDER} and run the same command again"
                    )
                table = pq.read_table(pa.BufferReader(content))
                high, low = halves(table[HASH].combine_chunks())
                highs.write(np.ascontiguousarray(high).data)
                lows.write(np.ascontiguousarray(low).data)
                places.write(np.ascontiguousarray(table[PLACE].to_numpy()).data)


@lru_cache(maxsize=1)
def _opened(vectors: OlderVectors) -> OlderIndex:
    folder = vectors.folder
    fill_node_folder(folder, vectors.fill, "reuse", 24 * vectors.texts, "leave out --reuse")
    shape = (vectors.texts,)
    texts = SharedTexts(
        np.memmap(folder / HIGH_FILE, np.uint64, "r", shape=shape),
        np.memmap(folder / LOW_FILE, np.uint64, "r", shape=shape),
        np.memmap(folder / PLACES_FILE, np.int64, "r", shape=shape),
    )
    shards = pq.read_table(pa.BufferReader(vectors.output.read(SHARDS_FILE)))
    return OlderIndex(vectors, texts, tuple(shards[SHARD].to_pylist()), shards[FIRST].to_numpy())


@dataclass(frozen=True)
class OlderIndex:
    """The index, opened in a process.

    Attributes:
        of: what it was opened from.
        texts: the hashes, and the place of each text.
        shards: names of the older output's shards, in order.
        firsts: int64, the place of the first row of each.
    """

    of: OlderVectors
    texts: SharedTexts
    shards: tuple[str, ...]
    firsts: Int64

    def find(self, texts: pa.Array) -> tuple[Int64, Vectors]:
        """Finds texts and reads their vectors.

        At most ``MAX_SHARDS`` shards are read, those with the most of these texts. Texts of other shards, and of shards
        that are gone or damaged, are not found.

        Args:
            texts: distinct texts.

        Returns:
            Indices of the texts that were found, int64 ``[m]``, and their vectors, float32 ``[m, dimension]``.
        """
        places = self.texts.find(texts)
        indices = np.flatnonzero(places >= 0)
        shards = np.searchsorted(self.firsts, places[indices], side="right") - 1
        numbers, counts = np.unique(shards, return_counts=True)
        found: list[Int64] = []
        vectors: list[Vectors] = []
        for number in numbers[np.argsort(-counts, kind="stable")][:MAX_SHARDS].tolist():
            those = indices[shards == number]
            read = self._read(self.shards[number], places[those] - self.firsts[number])
            if read is not None:
                found.append(those)
                vectors.append(read)
        none = np.zeros((0, self.of.format.dimension), np.float32)
        return np.concatenate((np.zeros(0, np.int64), *found)), np.concatenate((none, *vectors))

    def _read(self, shard: str, rows: Int64) -> Vectors | None:
        """The vectors of rows of a shard; None if it is gone, damaged or changed."""
        column = self.of.format.column
        try:
            table = read_rows(self.of.older, shard, rows, [column])
            vectors, valid = self.of.format.matrix(table[column].combine_chunks())
        except (StorageError, ValueError):
            return None
        return vectors if len(valid) == len(rows) else None
