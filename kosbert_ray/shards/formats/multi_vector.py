"""Token vectors: a list of vectors of equal length for each row.

The types are those that most readers take (docs/guides/sparse-and-token-vectors.md). The numbers are rounded to half
precision whatever the type, so float32 takes little more space in a file than float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.errors import UsageError
from kosbert_ray.shards.formats.base import Int64, has_vector, is_nullable, list_counts, list_offsets
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import MULTI_VECTOR, Kind
from kosbert_ray.vectors.token_vectors import TokenVectors

COLUMN = "multi_vector"
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class MultiVectorFormat:
    """The storage format of a column of token vectors; implements ``VectorFormat``.

    Attributes:
        dimension: length of a vector.
        dtype: number type.
        list_type: Arrow list type of a vector.
        compression: Parquet codec.
        nullable: whether rejected rows are kept, with a null vector.
    """

    dimension: int
    dtype: Literal["float32", "float16"] = "float32"
    list_type: Literal["list", "fixed_size_list"] = "list"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    nullable: bool = False
    column: str = COLUMN
    kind: Kind = MULTI_VECTOR

    @staticmethod
    def all_of(fingerprint: Mapping[str, Any]) -> tuple[MultiVectorFormat, ...]:
        """Returns the format of the column, as a job's fingerprint records it."""
        dtype = fingerprint.get("multi_vector_dtype", "float32")
        dimension, list_type = fingerprint["multi_vector_dimension"], fingerprint["list_type"]
        return (MultiVectorFormat(dimension, dtype, list_type, nullable=is_nullable(fingerprint)),)

    def field(self) -> pa.Field:
        """See ``VectorFormat``."""
        number = pa.type_for_alias(self.dtype)
        vector = pa.list_(number, self.dimension) if self.list_type == "fixed_size_list" else pa.list_(number)
        return pa.field(self.column, pa.list_(vector), self.nullable)

    def described(self) -> dict[str, Any]:
        """See ``VectorFormat``."""
        return {"kind": self.kind, "dimension": self.dimension, "dtype": self.dtype}

    def leaves(self) -> dict[str, bool]:
        """See ``VectorFormat``."""
        return {f"{self.column}.list.element.list.element": True}

    def array(self, vectors: TokenVectors, valid: pa.Array | None = None) -> pa.Array:
        """See ``VectorFormat``."""
        if vectors.values.size > INT32_MAX:
            raise UsageError(f"slice.max_bytes: {len(vectors.values):,} token vectors are too many for one file")
        has = has_vector(valid, len(vectors))
        values = vectors.values.astype(np.float16, copy=False).astype(self.dtype, copy=False)
        numbers = pa.array(values.reshape(-1))
        if self.list_type == "fixed_size_list":
            every = pa.FixedSizeListArray.from_arrays(numbers, self.dimension)
        else:
            every = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32) * self.dimension), numbers)
        mask = None if has.all() else pa.array(~has)
        return pa.ListArray.from_arrays(list_offsets(vectors.counts, has), every, mask=mask)

    def matrix(self, vectors: pa.Array) -> tuple[TokenVectors, Int64]:
        """See ``VectorFormat``."""
        rows = np.flatnonzero(pc.is_valid(vectors).to_numpy(zero_copy_only=False))
        there = vectors.drop_null() if vectors.null_count else vectors
        counts = list_counts(there)
        values = there.flatten().flatten().to_numpy(zero_copy_only=False)
        if len(values) != counts.sum() * self.dimension:
            raise ValueError(f"its token vectors do not all have {self.dimension} numbers")
        offsets = np.concatenate(([0], np.cumsum(counts)))
        return TokenVectors(offsets, values.reshape(-1, self.dimension), np.ones(len(rows), bool)), rows

    def problem(self, vectors: pa.Array, normalized: bool) -> str | None:
        """See ``VectorFormat``."""
        del normalized
        found, _ = self.matrix(vectors)
        bad = int((~np.isfinite(found.values)).any(axis=1).sum())
        return f"{plural(bad, 'token vector', 'hold')} NaN or Inf" if bad else None
