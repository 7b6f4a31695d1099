"""Qdrant: a point per row, with the shard's name in its payload, and a named vector for each column of vectors.

A shard is there if Qdrant counts as many points with its name as it has rows. During a first load no index is built (m=0).
"""

from __future__ import annotations

import contextlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.corpus.types import is_string, plain
from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.outputs.load.base import (
    ID,
    OUTPUT,
    SHARD,
    Rows,
    Source,
    VectorTypes,
    Work,
    batches,
    require_types,
    require_vector_types,
)
from kosbert_ray.shards.formats.base import VectorFormat
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise UsageError("qdrant: not installed; pip install 'kosbert-ray[qdrant]'") from error

MODEL = "kosbert_model"
FLOATS = {"float32": "float32", "float16": "float16"}
VECTOR_TYPES: VectorTypes = {DENSE: FLOATS, SPARSE: FLOATS, MULTI_VECTOR: FLOATS}
BATCH_POINTS = 512
SHARDS_AT_ONCE = 256  # named in one filter
MAX_SHARDS = 1_000_000  # that one count distinguishes
HNSW_M = 16  # Qdrant's default
TIMEOUT = 120  # seconds


def _dense(vectors: npt.NDArray[Any]) -> Callable[[int], list[float]]:
    numbers = np.asarray(vectors, np.float32)
    return lambda row: numbers[row].tolist()


def _sparse(vectors: SparseVectors) -> Callable[[int], models.SparseVector]:
    def make(row: int) -> models.SparseVector:
        own = slice(*vectors.offsets[row : row + 2])
        return models.SparseVector(indices=vectors.indices[own].tolist(), values=vectors.values[own].tolist())

    return make


def _tokens(vectors: TokenVectors) -> Callable[[int], list[list[float]] | None]:
    """A text without token vectors has no vector: Qdrant takes no empty one."""
    numbers = vectors.values.astype(np.float32, copy=False)
    return lambda row: numbers[slice(*vectors.offsets[row : row + 2])].tolist() or None


# From the vectors of a shard (``Rows.vectors``) to what makes the vector of one of its rows.
MAKE: dict[Kind, Callable[[Any], Callable[[int], Any]]] = {DENSE: _dense, SPARSE: _sparse, MULTI_VECTOR: _tokens}


def _size(item: VectorFormat) -> int | None:
    return None if item.kind == SPARSE else item.dimension


def _vector_params(item: VectorFormat) -> models.VectorParams:
    """Token vectors are compared as they are stored, as by ``kosbert-ray search``: Qdrant normalizes them for cosine."""
    tokens = item.kind == MULTI_VECTOR
    return models.VectorParams(
        size=item.dimension,
        distance=models.Distance.DOT if tokens else models.Distance.COSINE,
        datatype=models.Datatype(item.dtype),
        hnsw_config=models.HnswConfigDiff(m=0),
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM) if tokens else None,
    )


def spell(kind: pa.DataType) -> str | None:
    """Payload type of an Arrow type: what JSON keeps without loss."""
    kind = plain(kind)
    types = pa.types
    if is_string(kind) or types.is_boolean(kind) or types.is_floating(kind) or types.is_null(kind):
        return "json"
    if types.is_integer(kind):
        return None if types.is_uint64(kind) else "json"
    if types.is_date(kind) or (types.is_timestamp(kind) and kind.unit != "ns"):
        return "datetime"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return None if types.is_nested(kind.value_type) else spell(kind.value_type)
    return None


def open(address: str, source: Source) -> Qdrant:
    """Connects to ``qdrant://HOST[:PORT]`` by gRPC with the key in ``QDRANT_API_KEY``, or opens ``qdrant:FOLDER``."""
    parts = urlsplit(address)
    if parts.password or parts.username:
        raise UsageError("qdrant: leave the key out of the address; set QDRANT_API_KEY")
    folder = address.partition(":")[2]
    if not parts.netloc and (not folder or folder.startswith("//")):
        raise UsageError("qdrant: name a server or a folder, such as qdrant://localhost:6334 or qdrant:points/")
    try:
        with warnings.catch_warnings():
            # That the local mode is for small data, and that a server that does not answer did not tell its version.
            warnings.simplefilter("ignore", UserWarning)
            client = _client(parts, folder)
    except Exception as error:
        raise StorageError(f"{address}: cannot be opened ({first_line(error)})") from error
    return Qdrant(address, client, source)


def _client(parts: SplitResult, folder: str) -> QdrantClient:
    if not parts.netloc:
        return QdrantClient(path=os.path.expanduser(folder))
    key = os.environ.get("QDRANT_API_KEY")
    return QdrantClient(
        host=parts.hostname,
        grpc_port=parts.port or 6334,
        prefer_grpc=True,
        api_key=key,
        https=bool(key),
        timeout=TIMEOUT,
    )


class Qdrant:
    """A collection."""

    def __init__(self, address: str, client: QdrantClient, source: Source) -> None:
        self._client, self._source, self._name = client, source, source.options.name
        self._local = not urlsplit(address).netloc  # the client's own store, which has no indexes
        self.address = f"{address}, collection {self._name}"
        self._ours = models.FieldCondition(key=OUTPUT, match=models.MatchValue(value=source.identity))

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def require_fitting(self) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        source = self._source
        require_vector_types(source, VECTOR_TYPES, "Qdrant")
        self._kinds = require_types(source.schema, spell, "Qdrant")
        with self._errors():
            if not self._client.collection_exists(self._name):
                return
            self._require_vectors()
            other = models.Filter(
                must_not=[models.FieldCondition(key=MODEL, match=models.MatchValue(value=source.output.vectors_identity))]
            )
            if self._client.count(self._name, count_filter=other, exact=True).count:
                raise InputError(f"{self.address}: holds vectors of another model; choose another with --table")

    def _require_vectors(self) -> None:
        """Raises InputError if the collection lacks vectors that are loaded, or has others of the output."""
        theirs = self._vectors()
        for item in self._source.output.formats:
            wanted = item in self._source.formats
            if wanted and theirs.get(item.column) != (item.kind, _size(item)):
                kind = "" if item.kind == DENSE else f"{named([item.kind])} "
                size = "" if item.kind == SPARSE else f" of {item.dimension:,} dimensions"
                raise InputError(f"{self.address}: has no {kind}vectors {item.column!r}{size}; choose another with --table")
            if not wanted and item.column in theirs:
                raise InputError(
                    f"{self.address}: has vectors {item.column!r}, too, which points of this load would lack; load all "
                    "of its columns, or choose another with --table"
                )

    def _vectors(self) -> dict[str, tuple[Kind, int | None]]:
        """Kind and dimension of the collection's vectors, by name."""
        params = self._client.get_collection(self._name).config.params
        named_vectors = params.vectors if isinstance(params.vectors, dict) else {}
        found: dict[str, tuple[Kind, int | None]] = {
            name: (MULTI_VECTOR if item.multivector_config else DENSE, item.size) for name, item in named_vectors.items()
        }
        return found | dict.fromkeys(params.sparse_vectors or {}, (SPARSE, None))

    def held(self) -> dict[str, int]:
        """Counts the points of this output by shard."""
        with self._errors():
            if not self._client.collection_exists(self._name):
                return {}
            self._index_payload()
            ours = models.Filter(must=[self._ours])
            found = self._client.facet(self._name, SHARD, facet_filter=ours, limit=MAX_SHARDS, exact=True)
            return {str(hit.value): hit.count for hit in found.hits}

    def others(self) -> int:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`."""
        with self._errors():
            if not self._client.collection_exists(self._name):
                return 0
            other = models.Filter(must_not=[self._ours])
            return int(self._client.count(self._name, count_filter=other, exact=True).count)

    def apply(self, work: Work) -> None:
        """See :class:`~kosbert_ray.outputs.load.base.Destination`.

        The points of new shards come first. A row that is in one of them, too, then carries its name and stays when the
        points of shards that are gone are deleted.
        """
        with self._errors():
            first = self._create()
            try:
                for shard in work.load:
                    self._upload(self._source.rows(shard))
                self._delete(work)
            finally:
                if first:
                    self._set_links(HNSW_M)

    def _create(self) -> bool:
        """Makes the collection and its payload indexes; returns whether its vectors are not indexed yet."""
        source, client = self._source, self._client
        if not client.collection_exists(self._name):
            client.create_collection(
                self._name,
                vectors_config={item.column: _vector_params(item) for item in self._linked},
                sparse_vectors_config={
                    item.column: models.SparseVectorParams(
                        index=models.SparseIndexParams(datatype=models.Datatype(item.dtype))
                    )
                    for item in source.formats
                    if item.kind == SPARSE
                }
                or None,
            )
        self._index_payload()
        vectors = client.get_collection(self._name).config.params.vectors
        found = [vectors[item.column] for item in self._linked] if isinstance(vectors, dict) else []
        without = any(item.hnsw_config and item.hnsw_config.m == 0 for item in found)
        return without and source.options.index

    def _index_payload(self) -> None:
        """Makes the payload indexes that the collection lacks, as after a load that was killed; counting needs them."""
        if self._local:
            return
        there = self._client.get_collection(self._name).payload_schema
        for key in (SHARD, OUTPUT, MODEL):
            if key not in there:
                self._client.create_payload_index(self._name, key, models.PayloadSchemaType.KEYWORD)

    @property
    def _linked(self) -> list[VectorFormat]:
        """The columns that Qdrant indexes by HNSW; sparse vectors have an inverted index from the start."""
        return [item for item in self._source.formats if item.kind != SPARSE]

    def _set_links(self, m: int) -> None:
        links = models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=m))
        self._client.update_collection(self._name, vectors_config={item.column: links for item in self._linked})

    def _upload(self, rows: Rows) -> None:
        source = self._source
        payloads = rows.table.to_pylist()
        for name, kind in self._kinds.items():
            if kind == "datetime":
                for payload in payloads:
                    payload[name] = None if payload[name] is None else payload[name].isoformat()
        keys = list(zip(*(rows.table[name].to_pylist() for name in source.key), strict=True))
        vectors = {item.column: MAKE[item.kind](rows.vectors[item.column]) for item in source.formats}
        for first in range(0, len(payloads), BATCH_POINTS):
            chosen = slice(first, first + BATCH_POINTS)
            points = [
                models.PointStruct(
                    id=self._point(key),
                    vector={name: made for name, make in vectors.items() if (made := make(number)) is not None},
                    payload={OUTPUT: source.identity, SHARD: rows.shard, MODEL: source.output.vectors_identity, **payload},
                )
                for number, (key, payload) in enumerate(zip(keys[chosen], payloads[chosen], strict=True), first)
            ]
            self._client.upsert(self._name, points, wait=True)

    def _point(self, key: tuple[object, ...]) -> str:
        """UUIDv5 of the output and the row's id: ids of two outputs in a collection differ."""
        if self._source.key == (ID,):
            return str(uuid.uuid5(uuid.UUID(str(key[0])), self._source.identity))
        return str(uuid.uuid5(uuid.UUID(self._source.identity[:32]), repr(key)))

    def _delete(self, work: Work) -> None:
        self._delete_shards(work.remove)
        # A shard that held another number of rows: what it had too much, beside the rows that were loaded now.
        for shard in work.replace:
            keys = zip(*(self._source.rows(shard).table[name].to_pylist() for name in self._source.key), strict=True)
            points: list[int | str | uuid.UUID] = [self._point(key) for key in keys]
            tag = models.FieldCondition(key=SHARD, match=models.MatchValue(value=shard))
            stale = models.Filter(must=[self._ours, tag], must_not=[models.HasIdCondition(has_id=points)])
            self._client.delete(self._name, models.FilterSelector(filter=stale), wait=True)

    def _delete_shards(self, shards: Sequence[str]) -> None:
        for some in batches(shards, SHARDS_AT_ONCE):
            tags = models.FieldCondition(key=SHARD, match=models.MatchAny(any=list(some)))
            gone = models.FilterSelector(filter=models.Filter(must=[self._ours, tags]))
            self._client.delete(self._name, gone, wait=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (InputError, UsageError, StorageError):
            raise
        except Exception as error:  # of HTTP, gRPC or the local mode
            details = getattr(error, "details", None)  # what an error of gRPC says
            reason = str(details()) if callable(details) else first_line(error)
            raise StorageError(f"{self.address}: Qdrant refuses ({reason})") from error
