"""The layout of a vector column: its Arrow type, and the conversion from and to float32 matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.errors import UsageError
from kosbert_ray.shards.formats.base import has_vector, is_nullable
from kosbert_ray.shards.vector_types import CODECS, Codec, Ranges, VectorType
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, Kind

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class EmbeddingFormat:
    """The storage format of one column of dense vectors; implements ``VectorFormat``.

    Attributes:
        dimension: length of the vectors. A packed type such as ubinary stores fewer values.
        column: column name.
        dtype: number type, a key of :data:`~kosbert_ray.shards.vector_types.CODECS`.
        list_type: Arrow list type.
        compression: Parquet codec.
        nullable: whether rejected rows are kept, with a null vector.
        ranges: minimum and maximum of each dimension, for types that need them (int8).
    """

    dimension: int
    column: str = "embedding"
    dtype: VectorType = "float32"
    list_type: Literal["list", "fixed_size_list"] = "list"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    nullable: bool = False
    ranges: Ranges = ()
    kind: Kind = DENSE

    @staticmethod
    def of(fingerprint: Mapping[str, Any]) -> EmbeddingFormat:
        """Returns the format of an output's first column of dense vectors. See :meth:`all_of`."""
        return EmbeddingFormat.all_of(fingerprint)[0]

    @staticmethod
    def all_of(fingerprint: Mapping[str, Any]) -> tuple[EmbeddingFormat, ...]:
        """Returns the format of each column of dense vectors, as a job's fingerprint records it.

        Raises:
            KeyError: the fingerprint lacks a field.
        """
        first = EmbeddingFormat(
            fingerprint["dimension"],
            fingerprint["column"],
            list_type=fingerprint["list_type"],
            nullable=is_nullable(fingerprint),
        )
        return first.each(fingerprint["dtype"], tuple(tuple(values) for values in fingerprint["ranges"]))

    def each(self, dtypes: Sequence[VectorType], ranges: Ranges) -> tuple[EmbeddingFormat, ...]:
        """Returns this format in several number types: the first in this column, each other in ``<column>_<dtype>``."""
        return tuple(
            replace(self, dtype=dtype, column=f"{self.column}_{dtype}" if number else self.column).with_ranges(ranges)
            for number, dtype in enumerate(dtypes)
        )

    def with_ranges(self, ranges: Ranges) -> EmbeddingFormat:
        """Returns this format with these ranges, or without any if its type needs none."""
        return replace(self, ranges=ranges if self.codec.needs_ranges else ())

    @property
    def codec(self) -> Codec:
        """The entry of its number type."""
        return CODECS[self.dtype]

    @property
    def width(self) -> int:
        """Number of values in a list."""
        return self.codec.width(self.dimension)

    def field(self) -> pa.Field:
        """Returns the Arrow field of the column."""
        value = pa.type_for_alias(self.codec.arrow)
        fixed = self.list_type == "fixed_size_list"
        return pa.field(self.column, pa.list_(value, self.width) if fixed else pa.list_(value), self.nullable)

    def described(self) -> dict[str, Any]:
        """Returns what a reader needs to decode the values, as plain values for a shard's footer."""
        numbers = {"dimension": self.dimension, "dtype": self.dtype}
        return numbers | ({"ranges": self.ranges} if self.codec.needs_ranges else {})

    def leaves(self) -> dict[str, bool]:
        """See ``VectorFormat``."""
        return {f"{self.column}.list.element": self.codec.byte_stream_split}

    def array(self, vectors: npt.NDArray[np.float32], valid: pa.Array | None = None) -> pa.Array:
        """Converts float32 ``[n, dimension]`` to an Arrow array. float32 is not copied.

        Args:
            vectors: the rows that have a vector.
            valid: bool ``[rows]`` with ``n`` true values; the other rows get a null. None if every row has a vector.

        Raises:
            UsageError: the values exceed the int32 offsets of one Arrow list array.
        """
        if len(vectors) * self.width > INT32_MAX:
            raise UsageError(f"slice.max_rows: {len(vectors)} vectors of {self.dimension} are too many for one file")
        values = self.codec.encode(vectors, self.ranges)
        has = has_vector(valid, len(values))
        mask = None if has.all() else pa.array(~has)
        if self.list_type == "fixed_size_list":
            if mask is not None:  # a null occupies a list's worth of values
                all_rows = np.zeros((len(has), self.width), values.dtype)
                all_rows[has] = values
                values = all_rows
            return pa.FixedSizeListArray.from_arrays(_flat(values), self.width, mask=mask)
        offsets = np.concatenate(([0], np.cumsum(has))).astype(np.int32) * self.width
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _flat(values), mask=mask)

    def matrix(self, vectors: pa.Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Decodes an Arrow array of this format. float32 is not copied.

        Returns:
            The vectors that are not null, float32 ``[m, dimension]``, and their row numbers, int64 ``[m]``.

        Raises:
            ValueError: the vectors have another length.
        """
        rows = np.flatnonzero(pc.is_valid(vectors).to_numpy(zero_copy_only=False))
        return self.codec.decode(self.stored(vectors), self.dimension, self.ranges), rows

    def stored(self, vectors: pa.Array) -> npt.NDArray[Any]:
        """Returns the numbers of the vectors that are not null as they are stored, ``[m, width]``.

        Raises:
            ValueError: the vectors have another length.
        """
        values = vectors.drop_null().flatten().to_numpy(zero_copy_only=False)
        if len(values) != (len(vectors) - vectors.null_count) * self.width:
            raise ValueError(f"its vectors do not all have {self.width} numbers")
        return np.asarray(values).reshape(-1, self.width)

    def problem(self, vectors: pa.Array, normalized: bool) -> str | None:
        """See ``VectorFormat``."""
        matrix, _ = self.matrix(vectors)
        broken = int((~np.isfinite(matrix)).any(axis=1).sum())
        if broken:
            return f"{plural(broken, 'vector', 'hold')} NaN or Inf"
        tolerance = self.codec.norm_tolerance
        if normalized and tolerance is not None:
            off = int((np.abs(np.linalg.norm(matrix, axis=1) - 1) > tolerance).sum())
            if off:
                return f"{plural(off, 'vector', 'do')} not have length 1, as the model promises"
        return None


def _flat(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(np.ascontiguousarray(values).reshape(-1))
