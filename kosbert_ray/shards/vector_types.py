"""The number types that vectors can be stored in, as one table.

``int8`` and ``ubinary`` follow sentence-transformers' ``quantize_embeddings`` (version 6). To add a type, add an entry to
``CODECS``: options, shards, ``verify``, ``estimate`` and ``evaluate`` all read it. The module loads neither NumPy nor
Arrow, because the command line reads the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Matrix: TypeAlias = npt.NDArray[np.float32]
    Values: TypeAlias = npt.NDArray[Any]

Ranges = tuple[tuple[float, ...], ...]  # (minima, maxima), one value per dimension; empty for types without ranges
BUCKETS = 255


@dataclass(frozen=True)
class Codec:
    """One number type: how vectors are encoded and decoded, and how exact they are.

    Attributes:
        arrow: alias of the Arrow type of one value (``pyarrow.type_for_alias``).
        encode: float32 ``[n, d]`` and ranges to ``[n, width]`` of the Arrow type; may return its argument.
        decode: ``[n, width]``, ``d`` and ranges to float32 ``[n, d]``; may return its argument.
        agreement: the least cosine that rounding to this type allows between two encodings of a text.
        norm_tolerance: how far the length of a normalized vector may be from 1; None if the type does not keep lengths.
        width: values per vector for ``d`` dimensions.
        unpack: ``[n, width]`` and ``d`` to one number per dimension, ``[n, d]``, without undoing the scale.
        needs_ranges: whether encoding needs the minimum and maximum of each dimension.
        byte_stream_split: whether Parquet's BYTE_STREAM_SPLIT encoding applies (floating-point types).
    """

    arrow: str
    encode: Callable[[Matrix, Ranges], Values]
    decode: Callable[[Values, int, Ranges], Matrix]
    agreement: float
    norm_tolerance: float | None = None
    width: Callable[[int], int] = lambda dimension: dimension
    unpack: Callable[[Values, int], Values] = lambda values, _dimension: values
    needs_ranges: bool = False
    byte_stream_split: bool = False


def float_codec(name: str, agreement: float, norm_tolerance: float) -> Codec:
    """Builds the entry of a floating-point type from its name, which NumPy and Arrow share."""
    return Codec(
        arrow=name,
        encode=lambda vectors, _ranges: vectors.astype(name, copy=False),
        decode=lambda values, _dimension, _ranges: values.astype("float32", copy=False),
        agreement=agreement,
        norm_tolerance=norm_tolerance,
        byte_stream_split=True,
    )


def ranges_of(vectors: Matrix) -> Ranges:
    """Returns the minimum and maximum of each dimension, which int8 divides into 255 steps."""
    return tuple(vectors.min(0).tolist()), tuple(vectors.max(0).tolist())


def needs_ranges(names: Iterable[str]) -> bool:
    """Returns True if one of these types needs ranges."""
    return any(CODECS[name].needs_ranges for name in names)


def _steps(ranges: Ranges) -> tuple[Matrix, Matrix]:
    """Returns the start and the step size of each dimension, float32 ``[d]``."""
    import numpy as np

    if not ranges:
        raise ValueError("int8 needs ranges")
    starts, ends = np.array(ranges, np.float32)
    return starts, (ends - starts) / BUCKETS


def _encode_int8(vectors: Matrix, ranges: Ranges) -> Values:
    """Maps each value to one of 256 buckets of its dimension's range. Values outside the range are clipped."""
    import numpy as np

    starts, steps = _steps(ranges)
    buckets = np.clip(np.floor((vectors - starts) / np.where(steps == 0, 1, steps)), 0, BUCKETS)
    return np.asarray(buckets - 128, np.int8)


def _decode_int8(values: Values, _dimension: int, ranges: Ranges) -> Matrix:
    """Returns the middle of each bucket."""
    starts, steps = _steps(ranges)
    numbers: Matrix = values.astype("float32")
    numbers += 128.5
    numbers *= steps
    numbers += starts
    return numbers


def _encode_bits(vectors: Matrix, _ranges: Ranges) -> Values:
    """Packs the signs, eight dimensions per byte."""
    import numpy as np

    return np.packbits(vectors > 0, axis=-1)


def _unpack_bits(values: Values, dimension: int) -> Values:
    """Returns the bits as 0 and 1, uint8 ``[n, d]``."""
    import numpy as np

    return np.unpackbits(values, axis=-1, count=dimension)


def _decode_bits(values: Values, dimension: int, _ranges: Ranges) -> Matrix:
    """Returns the signs as 1 and -1."""
    numbers: Matrix = _unpack_bits(values, dimension).astype("float32")
    numbers *= 2
    numbers -= 1
    return numbers


CODECS: dict[str, Codec] = {
    "float32": float_codec("float32", agreement=1.0, norm_tolerance=1e-3),
    "float16": float_codec("float16", agreement=0.9999, norm_tolerance=5e-3),
    # Rounding moves a value to the next step now and then; in ubinary that flips a sign.
    "int8": Codec("int8", _encode_int8, _decode_int8, agreement=0.999, needs_ranges=True),
    "ubinary": Codec(
        "uint8",
        _encode_bits,
        _decode_bits,
        agreement=0.9,
        width=lambda dimension: -(-dimension // 8),
        unpack=_unpack_bits,
    ),
}

if TYPE_CHECKING:
    VectorType: TypeAlias = str
else:  # what options accept: the names in the table
    VectorType = Literal[tuple(CODECS)]
