"""The texts that an encoder takes, in every form in which libraries hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.errors import UsageError


class HasList(Protocol):
    """Anything that gives its values as a list, such as a pandas Series; polars' method is ``to_list``."""

    def tolist(self) -> list[Any]:
        """The values."""
        ...


Texts: TypeAlias = "str | Sequence[str] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray | HasList"


def as_array(texts: object) -> pa.Array:
    """Converts texts to an Arrow array, large_string ``[n]``; raises UsageError if they are not strings."""
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        kind, wrong = texts.type, "a null" if texts.null_count else ""
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            wrong = f"an array of {kind}"
        if not wrong:
            whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
            return whole.cast(pa.large_string())
    else:
        listed = getattr(texts, "tolist", None) or getattr(texts, "to_list", None)
        values = texts if isinstance(texts, Sequence) or listed is None else listed()
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            wrong = type(texts).__name__
        else:
            odd = next(((index, text) for index, text in enumerate(values) if not isinstance(text, str)), None)
            wrong = f"{type(odd[1]).__name__} at index {odd[0]}" if odd else ""
        if not wrong:
            return pa.array(values, pa.large_string())
    raise UsageError(f"texts: a string or a list of strings is needed, not {wrong}")
