"""The place of a row in the input: its file, and its row number or the byte at which its line begins."""

from __future__ import annotations

import pyarrow as pa

from kosbert_ray.corpus.formats.table import info_of
from kosbert_ray.corpus.fragments import Fragment


def addresses(fragment: Fragment, positions: pa.Array) -> dict[str, pa.Array]:
    """The addresses of rows of a fragment as columns, by name.

    Args:
        fragment: the fragment.
        positions: int64 ``[n]``, as in the row table.

    Returns:
        ``file``, and of ``row`` and ``byte_offset`` the one that its format has; the other is null.
    """
    nothing = pa.nulls(len(positions), pa.int64())
    by_row = info_of(fragment.file).row_numbers(fragment.file)
    return {
        "file": pa.array([fragment.file.name] * len(positions), pa.string()),
        "row": positions if by_row else nothing,
        "byte_offset": nothing if by_row else positions,
    }
