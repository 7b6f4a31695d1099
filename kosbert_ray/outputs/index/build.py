"""Builds and updates the index of an output.

Vectors of length 1 go into inverted lists (FAISS IVF), in blocks that are merged on disk. A later run adds a segment with
the shards that are new; shards that are gone are masked until too much of the index is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.outputs.index.files import (
    FOLDER,
    IndexedShards,
    IndexRecord,
    Segment,
    read_record,
    read_shards,
    write_record,
    write_shards,
)
from kosbert_ray.outputs.index.library import faiss, merge_ondisk
from kosbert_ray.outputs.index.quiet import quietly
from kosbert_ray.outputs.index.recall import probes_for
from kosbert_ray.outputs.index.searcher import IndexSearcher, local_folder, open_segment
from kosbert_ray.outputs.output import Output
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.vectors import read_vectors
from kosbert_ray.units import data_size, plural
from kosbert_ray.vectors.arithmetic import unit

BLOCK_BYTES = 64 * 2**20  # of codes that are held before they are written
TRAINING_BYTES = 256 * 2**20  # of vectors
TRAINING_ROWS = 40  # for each list
ITERATIONS = 10  # of k-means
MAX_LISTS = 2**16
MAX_MASKED = 0.2  # of the rows; with more the index is built again
MAX_SEGMENTS = 8
KINDS = ("SQ8", "RaBitQ4")
RABITQ_BYTES = 0.5  # a dimension; about

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Indexed:
    """The result of ``kosbert-ray index``.

    Attributes:
        record: the index.
        rows: vectors that it finds.
        added: rows that this run added.
        masked: rows of shards that are gone.
        seconds: time that it took.
    """

    record: IndexRecord
    rows: int
    added: int
    masked: int
    seconds: float


def build(output: Output, recall: float, memory: int, rebuild: bool = False, column: str | None = None) -> Indexed:
    """Brings the index of a complete output up to date.

    Args:
        output: the output.
        recall: recall@10 to reach.
        memory: bytes that the lists may take in memory while they are searched; beyond it codes of 4 bits are used.
        rebuild: whether to build all of it again.
        column: the column of vectors; None for the first.

    Raises:
        InputError: the output is not complete, or has no rows.
        StorageError: a shard cannot be read, or the index cannot be written.
    """
    started = time.monotonic()
    if not 0 < recall <= 1:
        raise UsageError(f"--recall: {recall:g} is not between 0 and 1")
    output.require_complete()
    assert output.success is not None
    receipts = {receipt.shard: receipt for receipt in output.receipts if receipt.shard and receipt.rows}
    if not receipts:
        raise InputError(f"{output.storage.url()}: there are no rows in it")
    vector_format = output.vector_format(column)
    rows = sum(receipt.rows for receipt in receipts.values())
    kind = KINDS[0] if rows * vector_format.dimension <= memory else KINDS[1]
    if (least := rows * vector_format.dimension // 2) > memory:
        raise UsageError(
            f"--memory: the smallest codes of {plural(rows, 'row')} take {data_size(least)}; give at least that"
        )
    record = None if rebuild else read_record(output)
    if record and (record.column, record.kind) != (vector_format.column, kind):
        record = None
    shards = read_shards(output.storage, record.shards_file) if record else None
    if record and shards and _worn(record, shards, receipts):
        record = shards = None
    new = [receipt for name, receipt in receipts.items() if shards is None or name not in {*shards.names}]
    with _folder() as folder:
        work = _Builder(output, vector_format.column, kind, Path(folder))
        trained = work.trained(record, rows)
        segments = record.segments if record else ()
        if new:
            segment, added = work.segment(trained, new, record.slots if record else 0)
            before = shards or IndexedShards((), np.zeros(0, np.int64))
            names = (*before.names, *(receipt.shard for receipt in new))
            shards = IndexedShards(names, np.concatenate((before.firsts, added)))
            segments = (*segments, segment)
        assert shards is not None
        shards_file = f"{FOLDER}/{output.ledger.run}.shards.parquet"
        draft = IndexRecord(
            manifest=output.success["manifest"],
            output=output.identity,
            column=vector_format.column,
            dimension=vector_format.dimension,
            kind=kind,
            lists=trained.nlist,
            probes=1,
            recall=0.0,
            shards_file=shards_file,
            segments=segments,
        )
        opened = []
        for segment in segments:
            at = Path(folder) if (Path(folder) / f"{segment.name}.faiss").exists() else local_folder(output.storage, draft)
            opened.append(open_segment(at, draft, segment))
        searcher = IndexSearcher(draft, shards, opened, [*receipts])
        probes, reached = probes_for(searcher, output, vector_format, recall)
        write_shards(output.storage, shards_file, shards)
        for path in Path(folder).iterdir():
            if path.name in segments[-1].sizes:
                output.storage.copy_in(f"{FOLDER}/{path.name}", path)
        final = IndexRecord(**{**vars(draft), "probes": probes, "recall": reached})
        write_record(output.storage, final)
    masked = sum(segment.rows for segment in segments) - rows
    return Indexed(final, rows, sum(receipt.rows for receipt in new), masked, time.monotonic() - started)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder for the files of an index; raises StorageError if there is no room for them."""
    try:
        with tempfile.TemporaryDirectory(prefix="kosbert-ray-index-") as folder:
            yield folder
    except (OSError, RuntimeError) as error:  # FAISS raises the latter
        raise StorageError(
            f"{tempfile.gettempdir()}: the index cannot be built there ({first_line(error)}); set TMPDIR to a larger disk"
        ) from error


def _worn(record: IndexRecord, shards: IndexedShards, held: dict[str, Receipt]) -> bool:
    """True if too many rows are masked, or there are too many segments, to add another."""
    lengths = shards.lengths(record.slots).tolist()
    gone = sum(length for name, length in zip(shards.names, lengths, strict=True) if name not in held)
    return gone > MAX_MASKED * record.slots or len(record.segments) >= MAX_SEGMENTS


class _Builder:
    """Builds segments in a folder."""

    def __init__(self, output: Output, column: str, kind: str, folder: Path) -> None:
        self._output, self._format, self._kind, self._folder = output, output.vector_format(column), kind, folder

    def trained(self, record: IndexRecord | None, rows: int) -> Any:
        """An index with centroids and no vectors: that of an earlier record, or trained on a sample."""
        if record:
            folder = local_folder(self._output.storage, record)
            index, _ = open_segment(folder, record, record.segments[0])
            centroids: Any = faiss.clone_index(index.quantizer)
            fresh = self._empty(record.lists)
            fresh.quantizer, fresh.own_fields = centroids, True
            centroids.this.disown()
            _copy_training(index, fresh)
            return fresh
        lists = min(MAX_LISTS, 2 ** int(math.log2(rows)), max(1, 2 ** round(math.log2(2 * math.sqrt(rows)))))
        index = self._empty(lists)
        most = max(lists, min(TRAINING_ROWS * lists, TRAINING_BYTES // (4 * self._format.dimension)))
        log.info(f"training {plural(lists, 'list')} on {plural(min(most, rows), 'row')}")
        sample = self._output.sample(most, columns=[], max_shards=None)
        index.train(np.ascontiguousarray(unit(sample.vectors), np.float32))
        return index

    def _empty(self, lists: int) -> Any:
        index: Any = faiss.index_factory(self._format.dimension, f"IVF{lists},{self._kind}", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = ITERATIONS
        index.cp.min_points_per_centroid = 1  # FAISS warns for fewer, of small outputs
        return index

    def segment(self, trained: Any, receipts: Sequence[Receipt], first: int) -> tuple[Segment, npt.NDArray[np.int64]]:
        """Writes a segment with the vectors of some shards; returns it, and the id of each shard's first row."""
        output, name = self._output, self._output.ledger.run
        nullable = self._format.nullable
        slots = np.array([receipt.shard_rows(nullable) for receipt in receipts], np.int64)
        firsts = first + np.cumsum(slots) - slots
        blocks: list[str] = []
        exact: npt.NDArray[np.float16] | None = None
        if self._kind != "SQ8":
            shape = (int(slots.sum()), self._format.dimension)
            exact = np.memmap(self._folder / f"{name}.float16", np.float16, "w+", shape=shape)
        rows = 0
        for receipt, start in zip(receipts, firsts.tolist(), strict=True):
            for vectors, numbers in read_vectors(output.storage, receipt.shard, self._format):
                directions = np.ascontiguousarray(unit(vectors), np.float32)
                trained.add_with_ids(directions, numbers + start)
                rows += len(numbers)
                if exact is not None:
                    exact[numbers + (start - first)] = directions
            if trained.ntotal * trained.code_size >= BLOCK_BYTES:
                blocks.append(self._write_block(trained, len(blocks)))
        if trained.ntotal or not blocks:
            blocks.append(self._write_block(trained, len(blocks)))
        with quietly():
            merge_ondisk(trained, blocks, str(self._folder / f"{name}.ivfdata"))
        faiss.write_index(trained, str(self._folder / f"{name}.faiss"))
        for block in blocks:
            Path(block).unlink()
        sizes = {path.name: path.stat().st_size for path in self._folder.iterdir() if path.name.startswith(name)}
        log.info(f"{plural(rows, 'row')} in {data_size(sum(sizes.values()))}")
        return Segment(name, first, int(slots.sum()), rows, sizes), firsts

    def _write_block(self, index: Any, number: int) -> str:
        path = str(self._folder / f"block-{number:05d}.faiss")
        faiss.write_index(index, path)
        index.reset()
        return path


def _copy_training(trained: Any, fresh: Any) -> None:
    """Copies what training found besides the centroids."""
    if hasattr(trained, "sq"):
        fresh.sq = trained.sq
    if hasattr(trained, "rabitq"):
        fresh.rabitq = trained.rabitq
    fresh.is_trained = True
