"""How vectors are stored in a shard: the column's Arrow type, to it and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kosbert_ray.errors import UsageError
from kosbert_ray.shards.vector_types import Ranges, VectorType, dequantize, quantize

ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "ubinary": pa.uint8()}
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class EmbeddingFormat:
    """How vectors are stored: column name, length, number type, and the Arrow list type that holds them.

    Attributes:
        dimension: of the vectors; ubinary puts eight to a byte, so its lists are shorter.
        column: its name.
        dtype: the number type.
        list_type: the Arrow list type.
        compression: the Parquet codec.
        nullable: rows that could not be embedded are there too, with a null.
        ranges: of int8, as in :func:`~kosbert_ray.shards.vector_types.quantize`.
    """

    dimension: int
    column: str = "embedding"
    dtype: VectorType = "float32"
    list_type: Literal["list", "fixed_size_list"] = "list"
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    nullable: bool = False
    ranges: Ranges = ()

    @staticmethod
    def of(fingerprint: Mapping[str, Any]) -> EmbeddingFormat:
        """Of the output's first column of vectors; the rest is as in :meth:`all_of`."""
        return EmbeddingFormat.all_of(fingerprint)[0]

    @staticmethod
    def all_of(fingerprint: Mapping[str, Any]) -> tuple[EmbeddingFormat, ...]:
        """As a job's fingerprint says, for reading, column by column; raises KeyError where it says nothing."""
        first = EmbeddingFormat(
            fingerprint["dimension"],
            fingerprint["column"],
            list_type=fingerprint["list_type"],
            nullable=fingerprint["on_bad_row"] == "null_vector",
        )
        return first.each(fingerprint["dtype"], tuple(tuple(values) for values in fingerprint["ranges"]))

    def each(self, dtypes: Sequence[VectorType], ranges: Ranges) -> tuple[EmbeddingFormat, ...]:
        """The same in several number types: the first in this column, the others in columns of their own."""
        return tuple(
            replace(
                self,
                dtype=dtype,
                column=f"{self.column}_{dtype}" if number else self.column,
                ranges=ranges if dtype == "int8" else (),
            )
            for number, dtype in enumerate(dtypes)
        )

    @property
    def width(self) -> int:
        """Values in a list."""
        return -(-self.dimension // 8) if self.dtype == "ubinary" else self.dimension

    def field(self) -> pa.Field:
        """The Arrow field of the vectors."""
        value = ARROW_TYPES[self.dtype]
        fixed = self.list_type == "fixed_size_list"
        return pa.field(self.column, pa.list_(value, self.width) if fixed else pa.list_(value), self.nullable)

    def described(self) -> dict[str, Any]:
        """What a reader needs to know to make numbers of the values again, as plain values."""
        numbers = {"dimension": self.dimension, "dtype": self.dtype}
        return numbers | ({"ranges": self.ranges} if self.dtype == "int8" else {})

    def array(self, vectors: npt.NDArray[np.float32], valid: pa.Array | None = None) -> pa.Array:
        """float32 ``[n, dimension]`` as an Arrow array; float32 is not copied.

        Args:
            vectors: of the rows that have one.
            valid: bool ``[rows]``, which rows these are; the others get a null. None: all.
        """
        if len(vectors) * self.width > INT32_MAX:
            raise UsageError(f"slice.max_rows: {len(vectors)} vectors of {self.dimension} are too many for one file")
        values = quantize(vectors, self.dtype, self.ranges)
        has = np.ones(len(values), bool) if valid is None else valid.to_numpy(zero_copy_only=False)
        mask = None if has.all() else pa.array(~has)
        if self.list_type == "fixed_size_list":
            if mask is not None:  # a null takes its place among the values
                all_rows = np.zeros((len(has), self.width), values.dtype)
                all_rows[has] = values
                values = all_rows
            return pa.FixedSizeListArray.from_arrays(_flat(values), self.width, mask=mask)
        offsets = np.concatenate(([0], np.cumsum(has))).astype(np.int32) * self.width
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _flat(values), mask=mask)

    def matrix(self, vectors: pa.Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The numbers in such an Arrow array, float32 ``[m, dimension]``, and which rows these are: those not null.

        They are as near to what was encoded as the type allows; float32 is not copied.

        Raises:
            ValueError: they are not vectors of that length.
        """
        rows = np.flatnonzero(pc.is_valid(vectors).to_numpy(zero_copy_only=False))
        values = vectors.drop_null().flatten().to_numpy(zero_copy_only=False)
        if len(values) != len(rows) * self.width:
            raise ValueError(f"its vectors do not all have {self.width} numbers")
        return dequantize(values.reshape(-1, self.width), self.dtype, self.dimension, self.ranges), rows


def _flat(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(np.ascontiguousarray(values).reshape(-1))
