"""The type that two files' columns have in common holds every value of both, and is the same in any order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from kosbert_ray.corpus.types import Seen, as_parquet, common_type, may_cast, parse_type
from kosbert_ray.errors import UsageError

NULL, STRING, LARGE, VIEW = pa.null(), pa.string(), pa.large_string(), pa.string_view()
COMMON = [
    (NULL, STRING, STRING),
    (NULL, pa.list_(STRING), pa.list_(STRING)),
    (STRING, LARGE, LARGE),
    (STRING, VIEW, STRING),
    (VIEW, LARGE, LARGE),
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.int32(), pa.uint32(), pa.int64()),
    (pa.uint8(), pa.uint64(), pa.uint64()),
    (pa.int64(), pa.uint64(), STRING),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.int32(), pa.float32(), pa.float64()),
    (pa.int64(), pa.float64(), STRING),
    (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.timestamp("s", "UTC"), pa.timestamp("ms", "UTC"), pa.timestamp("ms", "UTC")),
    (pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Seoul"), None),
    (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
    (pa.time32("s"), pa.time64("us"), pa.time64("us")),
    (pa.date32(), pa.date64(), pa.date32()),
    (pa.decimal128(10, 2), pa.decimal128(12, 2), pa.decimal128(12, 2)),
    (pa.decimal128(10, 2), pa.decimal128(10, 4), pa.decimal128(12, 4)),
    (pa.decimal128(38, 0), pa.decimal128(38, 10), pa.decimal256(48, 10)),
    (pa.decimal128(10, 2), pa.int32(), pa.decimal128(12, 2)),
    (pa.decimal128(10, 2), pa.float64(), None),
    (pa.list_(STRING), pa.large_list(LARGE), pa.large_list(LARGE)),
    (pa.list_(NULL), pa.list_(STRING), pa.list_(STRING)),
    (pa.list_(pa.field("element", STRING, False)), pa.list_(STRING), pa.list_(STRING)),
    (pa.list_(pa.int32(), 3), pa.list_(pa.int64(), 3), pa.list_(pa.int64(), 3)),
    (pa.list_(pa.int32(), 3), pa.list_(pa.int32(), 4), pa.list_(pa.int32())),
    (
        pa.struct([("a", pa.int32())]),
        pa.struct([("a", pa.int64()), ("b", STRING)]),
        pa.struct([("a", pa.int64()), ("b", STRING)]),
    ),
    (pa.struct([("a", STRING)]), pa.struct([("a", pa.bool_())]), None),
    (pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.float64())),
    (pa.map_(STRING, pa.int32()), pa.map_(STRING, pa.int64()), pa.map_(STRING, pa.int64())),
    (pa.int64(), STRING, None),
    (pa.bool_(), pa.int64(), None),
    (pa.date32(), pa.timestamp("us"), None),
    (pa.binary(), STRING, None),
    (pa.binary(), pa.large_binary(), pa.large_binary()),
]


@pytest.mark.parametrize(("one", "two", "both"), COMMON, ids=[f"{one}, {two}" for one, two, _ in COMMON])
def test_the_common_type_of_two(one: pa.DataType, two: pa.DataType, both: pa.DataType | None) -> None:
    assert common_type(one, two) == both
    assert common_type(two, one) == both
    assert common_type(one, one) is one
    assert both is None or may_cast(one, both)
    first, second = Seen(one, wide=True), Seen(two, wide=True)
    joined = first.join(second)
    assert (joined and joined.type) == both
    for third in (first, second):
        assert joined is None or joined.join(third).type == both, "more files of either type change nothing"


def test_integers_and_floats_are_doubles_while_each_integer_is_exact() -> None:
    exact, wide, double = Seen(pa.int64()), Seen(pa.int64(), wide=True), Seen(pa.float64())
    assert exact.join(double) == double
    assert wide.join(double) == Seen(pa.string(), wide=True, spelled=True)
    both = exact.join(double)
    assert both and both.join(wide) == Seen(pa.string(), wide=True, spelled=True)


def test_a_type_told_from_json_values_gives_way_to_strings() -> None:
    assert Seen(pa.int64(), loose=True).join(Seen(pa.string())) == Seen(pa.string())
    assert Seen(pa.string()).join(Seen(pa.bool_(), loose=True)) == Seen(pa.string())
    assert Seen(pa.int64()).join(Seen(pa.string(), loose=True)) is None
    assert Seen(pa.int32()).join(Seen(pa.int64(), loose=True)) == Seen(pa.int64())


@pytest.mark.parametrize(
    ("kind", "back"),
    [
        (pa.timestamp("s"), pa.timestamp("ms")),
        (pa.date64(), pa.date32()),
        (pa.time32("s"), pa.time32("ms")),
        (pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.string_view(), pa.string_view()),
        (pa.uint64(), pa.uint64()),
    ],
)
def test_parquet_gives_back_what_it_can_hold(kind: pa.DataType, back: pa.DataType) -> None:
    assert as_parquet(kind) == back
    assert str(as_parquet(back)) == str(back)


@pytest.mark.parametrize(
    "kind",
    [pa.struct([]), pa.month_day_nano_interval(), pa.run_end_encoded(pa.int32(), pa.string()), pa.list_(pa.struct([]))],
)
def test_a_type_that_parquet_cannot_hold_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(UsageError, match="cannot be written to Parquet"):
        as_parquet(kind)


NAMES = [kind for pair in COMMON for kind in pair if kind is not None]


@pytest.mark.parametrize("kind", NAMES, ids=str)
def test_a_type_is_known_by_the_name_it_is_printed_by(kind: pa.DataType) -> None:
    assert parse_type(str(kind)) == kind


@pytest.mark.parametrize(
    "name", ["", "klingon", "list<", "list<klingon>", "timestamp[us, tz=", "struct<a>", "decimal128(99, 0)"]
)
def test_what_is_no_type_is_said(name: str) -> None:
    with pytest.raises(UsageError, match="is not a column type; write it like int64"):
        parse_type(name)
