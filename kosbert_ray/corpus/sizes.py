"""Sizes of rows in bytes, independent of batches; they bound the size of a slice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Sizes = npt.NDArray[np.int64]


def row_bytes(array: pa.Array) -> Sizes:
    """Bytes of the values of each row: int64 ``[n]``. Offsets and validity bits do not count."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return row_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return row_bytes(array.cast(kind.value_type))
    if _is_view(kind):
        return row_bytes(array.cast(pa.large_binary()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        sizes: Sizes = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return sizes
    if pa.types.is_struct(kind):
        fields = (array.field(number) for number in range(kind.num_fields))
        return np.sum([row_bytes(field) for field in fields], axis=0, dtype=np.int64) + np.zeros(len(array), np.int64)
    if pa.types.is_map(kind):
        entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
        return _between(array.offsets.to_numpy(), row_bytes(entries))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _between(array.offsets.to_numpy(), row_bytes(array.values))
    if pa.types.is_fixed_size_list(kind):
        values = row_bytes(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
        sums: Sizes = values.reshape(len(array), kind.list_size).sum(axis=1)
        return sums
    try:
        return np.full(len(array), max(1, kind.bit_width // 8), np.int64)
    except ValueError:  # some other type of variable width
        return np.full(len(array), array.nbytes // max(1, len(array)), np.int64)


def _between(offsets: npt.NDArray[np.integer], sizes: Sizes) -> Sizes:
    """Sums over the runs of values that the offsets of an array, or of a slice of one, delimit."""
    ends = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    return np.diff(ends[offsets.astype(np.int64)])


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
