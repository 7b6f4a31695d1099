"""Searches an index: FAISS inverted lists, mapped into memory."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.model.source import fill_once, node_folder
from kosbert_ray.outputs.index.files import FOLDER, IndexedShards, IndexRecord, Int64, Segment, read_record, read_shards
from kosbert_ray.outputs.index.library import faiss
from kosbert_ray.outputs.index.quiet import quietly
from kosbert_ray.outputs.nearest import Nearest
from kosbert_ray.storage import Storage
from kosbert_ray.units import data_size
from kosbert_ray.vectors.arithmetic import unit

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

RANKED_AGAIN = 10  # candidates for each row asked for, where codes are coarse
Vectors = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class IndexSearcher:
    """An opened index.

    Args:
        record: its record.
        shards: the shards in it.
        segments: FAISS indexes, each with its float16 vectors if the codes are coarse.
        held: names of the shards that are in the output.
    """

    def __init__(
        self, record: IndexRecord, shards: IndexedShards, segments: Sequence[tuple[Any, Any]], held: Sequence[str]
    ) -> None:
        self.record, self.shards = record, shards
        self._segments = segments
        self._bits = _bits_of(record, shards, {*held})

    @staticmethod
    def open(output: Output) -> IndexSearcher | None:
        """Opens the index of an output; None if there is none of its current manifest.

        Raises:
            StorageError: it is damaged.
        """
        record = read_record(output)
        success = output.success
        if record is None or success is None:
            return None
        if record.manifest != success["manifest"]:
            log.warning(f"{output.storage.url(FOLDER)} is of an earlier run; comparing every row (run kosbert-ray index)")
            return None
        folder = local_folder(output.storage, record)
        segments = [open_segment(folder, record, segment) for segment in record.segments]
        return IndexSearcher(record, read_shards(output.storage, record.shards_file), segments, output.shards())

    def search(self, queries: Vectors, k: int, probes: int | None = None) -> Nearest:
        """Finds the rows nearest to ``q`` queries by cosine.

        Args:
            queries: float32 ``[q, d]``.
            k: rows per query.
            probes: lists to look into; None for as many as the record says.

        Returns:
            The nearest rows. Their shards are indices of :attr:`shards`, their scores those of the codes. Fewer than ``k``
            columns if the lists hold fewer.
        """
        scores, ids = self.ids(np.ascontiguousarray(unit(queries), np.float32), k, probes)
        filled = int((ids >= 0).all(0).sum())  # columns that every query has
        shard, row = self.shards.places(ids[:, :filled])
        return Nearest(scores[:, :filled], shard, row)

    def ids(self, directions: Vectors, k: int, probes: int | None = None) -> tuple[Vectors, Int64]:
        """Scores and ids of the rows nearest to queries of length 1, best first, ``[q, k]``; -1 where there are fewer."""
        count = k if self.record.kind == "SQ8" else k * RANKED_AGAIN
        parts = [self._of_segment(place, directions, count, probes) for place in range(len(self._segments))]
        scores, ids = (np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True))
        order = np.argsort(-scores, 1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def _of_segment(self, place: int, queries: Vectors, k: int, probes: int | None) -> tuple[Vectors, Int64]:
        index, exact = self._segments[place]
        selector_of: Any = faiss.IDSelectorBitmap
        selector = None if self._bits is None else selector_of(self._bits)
        parameters_of: Any = faiss.SearchParametersIVF
        parameters = parameters_of(nprobe=min(probes or self.record.probes, self.record.lists), sel=selector)
        scores, ids = index.search(queries, k, params=parameters)
        if exact is not None:
            vectors = exact[np.maximum(ids - self.record.segments[place].first, 0)]
            scores = np.einsum("qd,qkd->qk", queries, vectors.astype(np.float32))
        return np.where(ids < 0, -np.inf, scores).astype(np.float32), ids


def _bits_of(record: IndexRecord, shards: IndexedShards, held: set[str]) -> npt.NDArray[np.uint8] | None:
    """A bit for each id, set where its shard is in the output; None if all are."""
    valid = np.array([name in held for name in shards.names], bool)
    if valid.all():
        return None
    return np.packbits(np.repeat(valid, shards.lengths(record.slots)), bitorder="little")


def open_segment(folder: Path, record: IndexRecord, segment: Segment) -> tuple[Any, Any]:
    """Maps a segment into memory; raises StorageError if a file is missing or cut off."""
    for name, size in segment.sizes.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            raise StorageError(f"{path}: missing or cut off; run kosbert-ray index --rebuild")
    try:
        with quietly():
            index = faiss.read_index(str(folder / f"{segment.name}.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    except RuntimeError as error:
        raise StorageError(
            f"{folder / segment.name}.faiss: cannot be read ({first_line(error)}); run kosbert-ray index --rebuild"
        ) from error
    if record.kind == "SQ8":
        return index, None
    shape = (segment.slots, record.dimension)
    return index, np.memmap(folder / f"{segment.name}.float16", np.float16, "r", shape=shape)


def local_folder(storage: Storage, record: IndexRecord) -> Path:
    """The folder with the segments: the output's own or, of an object store, a copy in the temporary folder."""
    if not storage.remote:
        return Path(storage.path(FOLDER))
    names = "\n".join(segment.name for segment in record.segments)
    output, key = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (storage.url(), names))
    folder = node_folder(f"index-{output}-{key}")

    def fill(partial: Path) -> None:
        log.info(f"copying {storage.url(FOLDER)} ({data_size(record.bytes)}) to {folder}")
        for segment in record.segments:
            for name in segment.sizes:
                storage.copy_out(f"{FOLDER}/{name}", partial / name)

    try:
        fill_once(folder, fill)
    except OSError as error:
        raise StorageError(f"{folder}: the index cannot be copied there ({error.strerror or error})") from error
    for older in folder.parent.glob(f"{folder.name.removesuffix(key)}*"):
        if older != folder and older.is_dir():  # what another process has mapped stays until it ends
            shutil.rmtree(older, ignore_errors=True)
    return folder
