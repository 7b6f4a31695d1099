"""Sparse vectors: a struct of two lists, the indices and the values of what is not 0, ascending by index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.shards.formats.base import Int64, has_vector, is_nullable, list_counts, list_offsets
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import SPARSE, Kind
from kosbert_ray.vectors.sparse import SparseVectors

COLUMN = "sparse"
INDICES, VALUES = "indices", "values"


@dataclass(frozen=True)
class SparseFormat:
    """The storage format of a column of sparse vectors; implements ``VectorFormat``.

    Attributes:
        dimension: indices are below it: mostly the size of the model's vocabulary.
        dtype: number type of the values.
        compression: Parquet codec.
        nullable: whether rejected rows are kept, with a null vector.
        top_k: how many of the largest values a vector keeps; 0 for all.
        threshold: the smallest value that is kept.
    """

    dimension: int
    dtype: Literal["float32", "float16"] = "float32"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    nullable: bool = False
    top_k: int = 0
    threshold: float = 0.0
    column: str = COLUMN
    kind: Kind = SPARSE

    @staticmethod
    def all_of(fingerprint: Mapping[str, Any]) -> tuple[SparseFormat, ...]:
        """Returns the format of the column, as a job's fingerprint records it."""
        return (
            SparseFormat(
                fingerprint["sparse_dimension"],
                fingerprint.get("sparse_dtype", "float32"),
                nullable=is_nullable(fingerprint),
                top_k=fingerprint.get("sparse_top_k", 0),
                threshold=fingerprint.get("sparse_threshold", 0.0),
            ),
        )

    def field(self) -> pa.Field:
        """See ``VectorFormat``."""
        return pa.field(self.column, self._type(), self.nullable)

    def _type(self) -> pa.DataType:
        return pa.struct([(INDICES, pa.list_(pa.int32())), (VALUES, pa.list_(pa.type_for_alias(self.dtype)))])

    def described(self) -> dict[str, Any]:
        """See ``VectorFormat``."""
        return {"kind": self.kind, "dimension": self.dimension, "dtype": self.dtype}

    def leaves(self) -> dict[str, bool]:
        """See ``VectorFormat``."""
        return {f"{self.column}.{INDICES}.list.element": False, f"{self.column}.{VALUES}.list.element": True}

    def kept(self, vectors: SparseVectors) -> SparseVectors:
        """Returns the values that are stored."""
        return vectors.strongest(self.top_k or None, self.threshold)

    def array(self, vectors: SparseVectors, valid: pa.Array | None = None) -> pa.Array:
        """See ``VectorFormat``."""
        has = has_vector(valid, len(vectors))
        offsets = list_offsets(vectors.counts, has)
        values = pa.array(vectors.values.astype(self.dtype, copy=False))
        lists = [pa.ListArray.from_arrays(offsets, pa.array(vectors.indices)), pa.ListArray.from_arrays(offsets, values)]
        mask = None if has.all() else pa.array(~has)
        return pa.StructArray.from_arrays(lists, fields=list(self._type()), mask=mask)

    def matrix(self, vectors: pa.Array) -> tuple[SparseVectors, Int64]:
        """See ``VectorFormat``."""
        rows = np.flatnonzero(pc.is_valid(vectors).to_numpy(zero_copy_only=False))
        there = vectors.drop_null() if vectors.null_count else vectors
        indices, values = there.field(INDICES), there.field(VALUES)
        counts = list_counts(indices)
        if not np.array_equal(counts, list_counts(values)):
            raise ValueError("its vectors do not have as many values as indices")
        return SparseVectors(
            np.concatenate(([0], np.cumsum(counts))),
            indices.flatten().to_numpy(zero_copy_only=False),
            values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False),
            np.ones(len(rows), bool),
        ), rows

    def problem(self, vectors: pa.Array, normalized: bool) -> str | None:
        """See ``VectorFormat``."""
        del normalized
        found, _ = self.matrix(vectors)
        if bad := int((~np.isfinite(found.values)).sum()):
            return f"{plural(bad, 'value')} of {self.column} are NaN or Inf"
        steps = np.diff(found.indices)
        starts = found.offsets[1:-1]
        inside = np.ones(len(steps), bool)
        inside[starts[(starts > 0) & (starts <= len(steps))] - 1] = False
        if (steps[inside] <= 0).any():
            return f"indices of {self.column} are not ascending"
        if len(found.indices) and not 0 <= found.indices.min() <= found.indices.max() < self.dimension:
            return f"indices of {self.column} are not below {self.dimension:,}"
        return None
