"""Qdrant: a point per row, with the shard's name in its payload.

A shard is there if Qdrant counts as many points with its name as it has rows. During a first load no index is built (m=0).
"""

from __future__ import annotations

import contextlib
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult, urlsplit

import numpy as np
import pyarrow as pa

from kosbert_ray.corpus.types import is_string, plain
from kosbert_ray.errors import InputError, StorageError, UsageError, first_line
from kosbert_ray.outputs.load.base import (
    ID,
    OUTPUT,
    SHARD,
    Rows,
    Source,
    Work,
    batches,
    require_float_or_bits,
    require_types,
)

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise UsageError("qdrant: not installed; pip install 'kosbert-ray[qdrant]'") from error

MODEL = "kosbert_model"
VECTOR_TYPES = {"float32": "float32", "float16": "float16"}
BATCH_POINTS = 512
SHARDS_AT_ONCE = 256  # named in one filter
MAX_SHARDS = 1_000_000  # that one count distinguishes
HNSW_M = 16  # Qdrant's default
TIMEOUT = 120  # seconds


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
        self._datatype = require_float_or_bits(source, VECTOR_TYPES, "Qdrant")
        self._kinds = require_types(source.schema, spell, "Qdrant")
        with self._errors():
            if not self._client.collection_exists(self._name):
                return
            vectors = self._client.get_collection(self._name).config.params.vectors
            found = vectors.get(source.format.column) if isinstance(vectors, dict) else None
            if found is None or found.size != source.format.dimension:
                raise InputError(
                    f"{self.address}: has no vectors {source.format.column!r} of {source.format.dimension:,} dimensions; "
                    "choose another with --table"
                )
            other = models.Filter(
                must_not=[models.FieldCondition(key=MODEL, match=models.MatchValue(value=source.output.vectors_identity))]
            )
            if self._client.count(self._name, count_filter=other, exact=True).count:
                raise InputError(f"{self.address}: holds vectors of another model; choose another with --table")

    def held(self) -> dict[str, int]:
        """Counts the points of this output by shard."""
        with self._errors():
            if not self._client.collection_exists(self._name):
                return {}
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
                vectors_config={
                    source.format.column: models.VectorParams(
                        size=source.format.dimension,
                        distance=models.Distance.COSINE,
                        datatype=models.Datatype(self._datatype),
                        hnsw_config=models.HnswConfigDiff(m=0),
                    )
                },
            )
            if not self._local:
                for key in (SHARD, OUTPUT, MODEL):
                    client.create_payload_index(self._name, key, models.PayloadSchemaType.KEYWORD)
        vectors = client.get_collection(self._name).config.params.vectors
        found = vectors[source.format.column] if isinstance(vectors, dict) else None
        return bool(found and found.hnsw_config and found.hnsw_config.m == 0) and source.options.index

    def _set_links(self, m: int) -> None:
        change = {self._source.format.column: models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=m))}
        self._client.update_collection(self._name, vectors_config=change)

    def _upload(self, rows: Rows) -> None:
        source = self._source
        payloads = rows.table.to_pylist()
        for name, kind in self._kinds.items():
            if kind == "datetime":
                for payload in payloads:
                    payload[name] = None if payload[name] is None else payload[name].isoformat()
        keys = list(zip(*(rows.table[name].to_pylist() for name in source.key), strict=True))
        vectors = np.asarray(rows.vectors, np.float32)
        for first in range(0, len(payloads), BATCH_POINTS):
            chosen = slice(first, first + BATCH_POINTS)
            points = [
                models.PointStruct(
                    id=self._point(key),
                    vector={source.format.column: vector},
                    payload={OUTPUT: source.identity, SHARD: rows.shard, MODEL: source.output.vectors_identity, **payload},
                )
                for key, vector, payload in zip(keys[chosen], vectors[chosen].tolist(), payloads[chosen], strict=True)
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
