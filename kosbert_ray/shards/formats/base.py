"""Shared by the formats of all kinds of vectors: their protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.vectors.kinds import Kind

Int64 = npt.NDArray[np.int64]


class VectorFormat(Protocol):
    """The storage format of one column of vectors.

    Attributes:
        kind: the kind of vectors.
        column: column name.
        dimension: length of a vector, or of a token vector.
        dtype: number type.
        nullable: whether rejected rows are kept, with a null vector.
        compression: Parquet codec.
    """

    @property
    def kind(self) -> Kind: ...  # noqa: D102
    @property
    def column(self) -> str: ...  # noqa: D102
    @property
    def dimension(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def nullable(self) -> bool: ...  # noqa: D102
    @property
    def compression(self) -> str: ...  # noqa: D102

    def field(self) -> pa.Field:
        """Returns the Arrow field of the column."""
        ...

    def described(self) -> dict[str, Any]:
        """Returns what a reader needs to decode the values, as plain values for a shard's footer."""
        ...

    def leaves(self) -> dict[str, bool]:
        """Returns the Parquet path of each column of numbers, and whether BYTE_STREAM_SPLIT suits it."""
        ...

    def array(self, vectors: Any, valid: pa.Array | None = None) -> pa.Array:
        """Converts vectors to an Arrow array.

        Args:
            vectors: those of the rows that have one, in the form of the kind: float32 ``[n, dimension]``, SparseVectors or
                TokenVectors.
            valid: bool ``[rows]`` with ``n`` true values; the other rows get a null. None if every row has a vector.

        Raises:
            UsageError: they are too many for one Arrow array.
        """
        ...

    def matrix(self, vectors: pa.Array) -> tuple[Any, Int64]:
        """Decodes an Arrow array.

        Returns:
            The vectors that are not null, in the form of the kind, and their row numbers, int64 ``[m]``.

        Raises:
            ValueError: they are not of this format.
        """
        ...

    def problem(self, vectors: pa.Array, normalized: bool) -> str | None:
        """Returns what is wrong with stored vectors, or None.

        Args:
            vectors: an Arrow array of this format.
            normalized: whether the job promises dense vectors of length 1.

        Raises:
            ValueError: they are not of this format.
        """
        ...


def is_nullable(fingerprint: Mapping[str, Any]) -> bool:
    """Returns True if the shards of a job have rejected rows, with null vectors, by its fingerprint."""
    return bool(fingerprint["on_bad_row"] == "null_vector")


def has_vector(valid: pa.Array | None, count: int) -> npt.NDArray[np.bool_]:
    """Returns which rows have a vector, bool ``[rows]``; see :meth:`VectorFormat.array`."""
    return np.ones(count, bool) if valid is None else valid.to_numpy(zero_copy_only=False)


def list_offsets(counts: Int64, has: npt.NDArray[np.bool_]) -> pa.Array:
    """Returns the offsets of an Arrow list array.

    Args:
        counts: entries of each row that has a vector.
        has: bool ``[rows]``, which rows have one; the others are empty.
    """
    every = np.zeros(len(has), np.int64)
    every[has] = counts
    return pa.array(np.concatenate(([0], np.cumsum(every))).astype(np.int32), pa.int32())


def list_counts(lists: pa.Array) -> Int64:
    """Returns the length of each list of an array without nulls, int64 ``[n]``."""
    import pyarrow.compute as pc

    counts: Int64 = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts
