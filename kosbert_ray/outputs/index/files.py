"""The files of an index in ``_index/``: its segments, the table of the shards in them, and a record, written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kosbert_ray.errors import StorageError, first_line
from kosbert_ray.shards.shard import reading
from kosbert_ray.storage import Storage
from kosbert_ray.storage.parquet import to_parquet

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output

FOLDER = "_index"
RECORD_FILE = f"{FOLDER}/index.json"
FORMAT = 1  # of the record and the files

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A FAISS index of some shards. All segments of an index share their centroids.

    Attributes:
        name: of its files: ``<name>.faiss``, ``<name>.ivfdata`` and, to rank again, ``<name>.float16``.
        first: the id of its first row.
        slots: ids that it takes; rows without a vector take one, too.
        rows: vectors in it.
        sizes: bytes of each file.
    """

    name: str
    first: int
    slots: int
    rows: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class IndexRecord:
    """Describes an index.

    Attributes:
        manifest: name of the output's manifest that it covers.
        output: sha256 of the output's job.json.
        column: the indexed column of vectors.
        dimension: of the vectors.
        kind: how vectors are stored in the lists: "SQ8" or "RaBitQ4".
        lists: number of lists.
        probes: lists that a query looks into.
        recall: recall@10 that was measured with it.
        shards_file: name of the table of shards.
        segments: the segments.
        format: version of these files.
    """

    manifest: str
    output: str
    column: str
    dimension: int
    kind: str
    lists: int
    probes: int
    recall: float
    shards_file: str
    segments: tuple[Segment, ...]
    format: int = FORMAT

    @property
    def slots(self) -> int:
        """Ids that all segments take."""
        return sum(segment.slots for segment in self.segments)

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        return sum(size for segment in self.segments for size in segment.sizes.values())

    @property
    def files(self) -> list[str]:
        """Names of all files but the record."""
        return [self.shards_file, *(f"{FOLDER}/{name}" for segment in self.segments for name in segment.sizes)]


@dataclass(frozen=True)
class IndexedShards:
    """The shards in an index, in the order of their ids.

    Attributes:
        names: of the shards; those that are no longer in the output stay until the index is built again.
        firsts: int64, the id of the first row of each.
    """

    names: tuple[str, ...]
    firsts: Int64

    def lengths(self, slots: int) -> Int64:
        """Ids that each shard takes, int64, of ``slots`` in all."""
        return np.diff(np.append(self.firsts, slots))

    def places(self, ids: Int64) -> tuple[Int64, Int64]:
        """The index of each id's shard and its row number there, int64 of the same shape."""
        shard = np.searchsorted(self.firsts, ids, side="right") - 1
        return shard, ids - self.firsts[shard]


def read_record(output: Output) -> IndexRecord | None:
    """Reads the record of an index; None if there is none, or it is of another output or a later version.

    Raises:
        StorageError: it is damaged.
    """
    storage = output.storage
    try:
        tree: dict[str, Any] = json.loads(storage.read(RECORD_FILE))
        if tree.get("format") != FORMAT:
            return None
        segments = tuple(Segment(**segment) for segment in tree.pop("segments"))
        record = IndexRecord(**tree, segments=segments)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{storage.url(RECORD_FILE)}: cannot be read ({first_line(error)}); delete it and run kosbert-ray index"
        ) from error
    return record if record.output == output.identity else None


def write_record(storage: Storage, record: IndexRecord) -> None:
    """Writes the record, then deletes files that it does not name."""
    storage.write_atomic(RECORD_FILE, json.dumps(asdict(record), indent=2).encode())
    keep = {RECORD_FILE, *record.files}
    storage.delete([entry.name for entry in storage.list(FOLDER) if entry.name not in keep])


def read_shards(storage: Storage, name: str) -> IndexedShards:
    """Reads the table of shards; raises StorageError if it is damaged."""
    with reading(storage, name):
        table = pq.read_table(pa.BufferReader(storage.read(name)))
        return IndexedShards(tuple(table["shard"].to_pylist()), table["first"].to_numpy())


def write_shards(storage: Storage, name: str, shards: IndexedShards) -> None:
    """Writes the table of shards."""
    storage.write_atomic(name, to_parquet(pa.table({"shard": list(shards.names), "first": shards.firsts})))
