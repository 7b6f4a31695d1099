"""One schema for all files: each keeps its values, or fails by name while the others are embedded."""

from __future__ import annotations

import datetime
import decimal
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import good, reasons

from kosbert_ray.corpus.formats import parquet
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import Corpus, list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.schema import SAMPLE_FILES, inspect
from kosbert_ray.errors import InputError, StorageError, UsageError

US, NS = pa.timestamp("us"), pa.timestamp("ns")
DAY = datetime.datetime(2026, 11, 26)
FOREVER = datetime.datetime(9999, 12, 31)


def write(path: Path, **columns: Any) -> None:
    """A file of any format by its name; a text of each row is added."""
    count = len([*columns.values()][-1])
    values = {"text": [f"글 {path.name} {row}" for row in range(count)], **columns}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(values), path)
    elif path.suffix == ".arrow":
        table = pa.table(values)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        lines = [",".join(map(str, row)) for row in zip(*values.values(), strict=True)]
        path.write_text("\n".join([",".join(values), *lines]))
    else:
        lines = [json.dumps(dict(zip(values, row, strict=True)), default=str) for row in zip(*values.values(), strict=True)]
        path.write_text("\n".join(lines))


def read(folder: Path, keep: Any = ("x",), text: str = "text", options: LineOptions = LineOptions(), **more: Any):
    corpus, columns = inspect(list_corpus(str(folder)), text, keep, options, **more)
    reader = FragmentReader(corpus.storage, columns, options, Limits())
    rows = [row for item in plan(corpus.files, Limits()) for _, table in reader.slices(item) for row in table.to_pylist()]
    return corpus, columns, rows


def arr(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind)


BIG = 2**53 + 1
# Files with what they hold, the type that comes out, and the values.
UNIONS: dict[str, tuple[dict[str, Any], pa.DataType, list[Any]]] = {
    "string, large_string": (
        {"a.parquet": arr(["a"], pa.string()), "b.parquet": arr(["b"], pa.large_string())},
        pa.large_string(),
        ["a", "b"],
    ),
    "dictionary, string": (
        {"a.parquet": pa.array(["a"]).dictionary_encode(), "b.parquet": arr(["b"], pa.string())},
        pa.string(),
        ["a", "b"],
    ),
    "null first": ({"a.parquet": arr([None], pa.null()), "b.parquet": ["b"]}, pa.string(), [None, "b"]),
    "null second": ({"a.parquet": ["a"], "b.parquet": arr([None], pa.null())}, pa.string(), ["a", None]),
    "int32, int64": ({"a.parquet": arr([1], pa.int32()), "b.parquet": [2**40]}, pa.int64(), [1, 2**40]),
    "int64, double": ({"a.parquet": [1, 2], "b.parquet": [0.5]}, pa.float64(), [1.0, 2.0, 0.5]),
    "wide int64, double": ({"a.parquet": [BIG], "b.parquet": [0.5]}, pa.string(), [str(BIG), "0.5"]),
    "us, ns": ({"a.parquet": arr([DAY], US), "b.parquet": arr([DAY], NS)}, NS, [DAY, DAY]),
    "decimals": (
        {"a.parquet": [decimal.Decimal("1.25")], "b.parquet": [decimal.Decimal("123.5")]},
        pa.decimal128(5, 2),
        [decimal.Decimal("1.25"), decimal.Decimal("123.50")],
    ),
    "lists of null and of strings": (
        {"a.parquet": arr([[]], pa.list_(pa.null())), "b.parquet": [["b"]]},
        pa.list_(pa.string()),
        [[], ["b"]],
    ),
    "struct with a new field": (
        {"a.parquet": [{"p": 1}], "b.parquet": [{"p": 2, "q": "b"}]},
        pa.struct([("p", pa.int64()), ("q", pa.string())]),
        [{"p": 1, "q": None}, {"p": 2, "q": "b"}],
    ),
    "elements not null": (
        {"a.parquet": arr([["a"]], pa.list_(pa.field("element", pa.string(), False))), "b.parquet": [[None]]},
        pa.list_(pa.string()),
        [["a"], [None]],
    ),
    "arrow int32 then int64": ({"a.arrow": arr([1], pa.int32()), "b.arrow": [2**40]}, pa.int64(), [1, 2**40]),
    "arrow seconds": (
        {"a.arrow": arr([1], pa.timestamp("s"))},
        pa.timestamp("ms"),
        [datetime.datetime(1970, 1, 1, 0, 0, 1)],
    ),
    "arrow date64": ({"a.arrow": arr([DAY.date()], pa.date64())}, pa.date32(), [DAY.date()]),
    "json ints then strings": ({"a.jsonl": [0, 1], "b.jsonl": ["A0"]}, pa.string(), ["0", "1", "A0"]),
    "json ints and parquet int32": ({"a.parquet": arr([1], pa.int32()), "b.jsonl": [2]}, pa.int64(), [1, 2]),
    "json null first": ({"a.jsonl": [None], "b.jsonl": [1]}, pa.int64(), [None, 1]),
    "json beyond int64": ({"a.jsonl": [2**63, 1]}, pa.uint64(), [2**63, 1]),
    "json beyond uint64": ({"a.jsonl": [2**64, -1]}, pa.string(), [str(2**64), "-1"]),
    "json NaN beside big ints": ({"a.jsonl": [float("nan"), BIG]}, pa.int64(), [None, BIG]),
    "json fractions beside big ints": (
        {"a.jsonl": [0.1, 12345678901234567890]},
        pa.string(),
        ["0.1", "12345678901234567890"],
    ),
    "json ints and floats": ({"a.jsonl": [1, 0.5]}, pa.float64(), [1.0, 0.5]),
    "csv and json ints": ({"a.csv": ["1"], "b.jsonl": [2]}, pa.string(), ["1", "2"]),
}


@pytest.mark.parametrize("name", UNIONS)
def test_files_of_unlike_types_get_the_type_that_holds_all(tmp_path: Path, name: str) -> None:
    files, kind, expected = UNIONS[name]
    for file, values in files.items():
        write(tmp_path / file, x=values)
    corpus, columns, rows = read(tmp_path)
    assert columns.keep.field("x").type == kind and not corpus.failed
    assert good(rows, "x") == expected and not reasons(rows)


AS_IN_0_1_0 = {
    "a.parquet": [
        (pa.int8(), "int8"),
        (pa.uint32(), "uint32"),
        (pa.float32(), "float"),
        (pa.large_string(), "large_string"),
        (pa.timestamp("us", "UTC"), "timestamp[us, tz=UTC]"),
        (pa.list_(pa.string()), "list<element: string>"),
        (pa.decimal128(10, 2), "decimal128(10, 2)"),
        (pa.binary(), "binary"),
        (pa.date32(), "date32[day]"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.null(), "null"),
    ],
    "a.arrow": [(pa.int64(), "int64"), (pa.large_string(), "large_string"), (pa.list_(pa.string()), "list<item: string>")],
}


@pytest.mark.parametrize(("file", "kind", "name"), [(file, *pair) for file, pairs in AS_IN_0_1_0.items() for pair in pairs])
def test_a_type_that_all_files_share_is_named_as_ever(tmp_path: Path, file: str, kind: pa.DataType, name: str) -> None:
    write(tmp_path / file, x=pa.nulls(2, kind))
    write(tmp_path / f"b{file}", x=pa.nulls(1, kind))
    assert str(read(tmp_path)[1].keep.field("x").type) == name


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1], "int64"), ([1.5], "double"), ([True], "bool"), (["a"], "string"), ([[1]], "string"), ([None], "string")],
)
def test_json_types_are_named_as_ever(tmp_path: Path, values: list[Any], kind: str) -> None:
    write(tmp_path / "a.jsonl", x=values)
    assert str(read(tmp_path)[1].keep.field("x").type) == kind


def failed(corpus: Corpus) -> dict[str, str]:
    return {file.name: file.reason for file in corpus.failed}


MISFITS: dict[str, tuple[Any, Any, str]] = {
    "time zones": (
        arr([DAY], pa.timestamp("us", "UTC")),
        arr([DAY], pa.timestamp("us", "Asia/Seoul")),
        "column 'x' is timestamp[us, tz=Asia/Seoul], but in a.parquet it is timestamp[us, tz=UTC]",
    ),
    "numbers and words": ([1], ["one"], "column 'x' is string, but in a.parquet it is int64"),
    "lists and words": ([["a"]], ["one"], "column 'x' is string, but in a.parquet it is list"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_file_that_does_not_fit_fails_alone(tmp_path: Path, name: str) -> None:
    first, second, said = MISFITS[name]
    write(tmp_path / "a.parquet", x=first)
    write(tmp_path / "b.parquet", x=second)
    write(tmp_path / "c.parquet", x=first)
    corpus, _, rows = read(tmp_path)
    assert [*failed(corpus)] == ["b.parquet"] and said in failed(corpus)["b.parquet"]
    assert len(good(rows)) == 2


def test_a_timestamp_beyond_nanoseconds_fails_by_its_row_and_input_types_is_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=arr([DAY], NS))
    write(tmp_path / "b.parquet", x=arr([DAY, FOREVER], US))
    with pytest.raises(InputError, match=r"b\.parquet: row 1: column 'x' is timestamp\[ns\], and 9999-12-31.*input\.types"):
        read(tmp_path)
    _, columns, rows = read(tmp_path, types={"x": US})
    assert columns.keep.field("x").type == US and good(rows, "x") == [DAY, DAY, FOREVER]


def test_int96_timestamps_are_read_as_microseconds(tmp_path: Path) -> None:
    table = pa.table({"text": ["가", "나"], "x": pa.array([DAY, FOREVER], US)})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    _, columns, rows = read(tmp_path)
    assert columns.keep.field("x").type == US and good(rows, "x") == [DAY, FOREVER]


def test_a_column_that_some_files_lack_is_null_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", y=[1])
    write(tmp_path / "b.parquet", x=["b"], y=[2])
    write(tmp_path / "c.csv", y=["3"])
    write(tmp_path / "d.arrow", y=[4])
    corpus, _, rows = read(tmp_path)
    assert good(rows, "x") == [None, "b", None, None] and not corpus.failed
    assert any("column 'x' is null in 3 files without it (a.parquet, c.csv, d.arrow)" in line for line in corpus.notices)
    with pytest.raises(InputError, match=r"a\.parquet: no column 'z'; it has 'text', 'y' \(set input\.keep\)"):
        read(tmp_path, keep=["z"])


def test_a_key_that_comes_late_is_found(tmp_path: Path) -> None:
    lines = [
        {"text": f"글 {row}"} | ({"x": row, "y": None if row < 1600 else 0.5} if row >= 1500 else {}) for row in range(2000)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, columns, rows = read(tmp_path, keep=["x", "y"])
    assert [field.type for field in columns.keep] == [pa.int64(), pa.float64()]
    assert good(rows, "x")[1499:1501] == [None, 1500]


def test_what_a_double_cannot_hold_is_rejected_row_by_row(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", x=[0.5] * 1000 + [BIG, 2**53])
    _, _, rows = read(tmp_path)
    assert reasons(rows) == [
        f"column 'x' is double in the first rows, and here {BIG}; set input.types to a type that holds it, such as string"
    ]
    assert good(rows, "x")[-1] == 2.0**53


def test_empty_files_of_any_format_have_no_rows_and_no_say(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow", "a.csv", "a.tsv", "a.jsonl", "a.txt", "a.csv.gz", "a.jsonl.zst", "a.csv.zip"):
        (tmp_path / name).write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([], pa.float64()), "x": pa.array([], pa.null())}), tmp_path / "b.parquet")
    write(tmp_path / "b.arrow", text=pa.array([], pa.float64()), x=pa.array([], pa.null()))
    (tmp_path / "b.csv").write_text("\n\n")
    write(tmp_path / "c.jsonl", x=[1])
    write(tmp_path / "d.parquet", x=[2])
    corpus, columns, rows = read(tmp_path)
    assert columns.keep.field("x").type == pa.int64() and good(rows, "x") == [1, 2] and not corpus.failed
    assert any("skipped 9 empty files (a.arrow, a.csv, a.csv.gz and 6 more)" in line for line in corpus.notices)


def test_a_corpus_of_empty_files_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    corpus, columns, rows = read(tmp_path)
    assert (rows, corpus.failed, columns.keep.field("x").type) == ([], (), pa.string())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 cut short", "broken Parquet"),
        ("a.parquet", b'{"text": "a"}\n', "broken Parquet"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer, not the file itself; run git lfs pull",
        ),
        ("a.arrow", b"PAR1\x15\x04", "a Parquet file; rename it"),
        ("a.jsonl.gz", b"plain", "not gzip data but plain text"),
        ("a.csv", b"id,body\n1,x\n", "no column 'text'; it has 'id', 'body' (set input.text)"),
        ("a.csv", b"text,x,text\n1,2,3\n", "column 'text' appears 2 times in its header"),
        ("a.csv", b'id,"text\n' * 3, "bad CSV header"),
        ("a.csv", "번호,제목\n1,가\n".encode("cp949"), "all are valid cp949; set input.encoding=cp949"),
        ("a.jsonl", b"[\n{}\n]\n", "a JSON document (one array), not JSON lines"),
        ("a.jsonl", b'{"body": 1}\n', "no column 'text'; it has 'body'"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}\n', "column 'text' is a JSON list, not a string; join it into a string"),
        ("a.jsonl", b'{"text": {"n": 1, "body": "a"}}\n', "name one of its fields with input.text, such as text.body"),
        ("a.txt", b"\xff\xfeg\0\n\0", "UTF-16 text"),
    ],
)
def test_a_fault_that_planning_sees_fails_one_file_wherever_it_stands(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    for first in (True, False):
        folder = tmp_path / str(first)
        folder.mkdir()
        bad = name if first else f"z{name}"
        (folder / bad).write_bytes(content)
        write(folder / "m.parquet", x=[1])
        corpus, _, rows = read(folder)
        assert [*failed(corpus)] == [bad] and good(rows, "x") == [1]
        assert said in failed(corpus)[bad] and failed(corpus)[bad].startswith(str(folder / bad))
        (folder / "m.parquet").unlink()
        with pytest.raises(InputError) as raised:
            read(folder)
        assert str(raised.value) == failed(corpus)[bad], "alone, it is the run's error"


def test_a_file_that_cannot_be_opened_fails_alone(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "a.parquet", x=[1])
    write(tmp_path / "b.parquet", x=[2])
    corpus = list_corpus(str(tmp_path))
    opened = corpus.storage.fs.open

    def refuse(path: str, *args: Any, **more: Any) -> Any:  # the tests may run as root, whom no rights stop
        if path.endswith("a.parquet"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    def by_path(file: Any, *more: Any) -> Any:
        if isinstance(file, str):
            raise PermissionError(13, "Permission denied")
        return read(file, *more)

    read = parquet._metadata
    monkeypatch.setattr(parquet, "_metadata", by_path)
    monkeypatch.setattr(type(corpus.storage.fs), "open", lambda _self, *args, **more: refuse(*args, **more))
    found, _ = inspect(corpus, "text", ["x"], LineOptions())
    assert failed(found) == {
        "a.parquet": f"{tmp_path}/a.parquet: permission denied (Permission denied); "
        "check the permissions of the file and its parent folders"
    }
    monkeypatch.setattr(type(corpus.storage.fs), "open", lambda _self, path, *_args, **_more: refuse(f"{path}/a.parquet"))
    with pytest.raises(StorageError):
        inspect(corpus, "text", ["x"], LineOptions())


def test_a_folder_of_other_data_is_named(tmp_path: Path) -> None:
    for folder in ("sts", "ynat"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "sts" / "a.parquet", x=[1])
    write(tmp_path / "ynat" / "a.parquet", title=["제목"])
    corpus, _, _ = read(tmp_path, keep=[], text="title")
    assert failed(corpus)["sts/a.parquet"].endswith(
        "(set input.text); files in ynat/ have it, so sts/ may contain other data: name one folder as the input"
    )


def test_duplicate_names_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["가"]), pa.array([1]), pa.array([2])], names=["text", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(read(tmp_path, keep=[])[2]) == 1
    with pytest.raises(InputError, match=r"a\.parquet: column 'x' appears 2 times"):
        read(tmp_path)


@pytest.mark.parametrize("kind", [pa.struct([]), pa.month_day_nano_interval(), pa.run_end_encoded(pa.int32(), pa.string())])
def test_a_column_that_parquet_cannot_hold_is_refused_in_planning(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": ["가"], "x": pa.array(["a"]) if pa.types.is_run_end_encoded(kind) else pa.nulls(1, kind)})
    if pa.types.is_run_end_encoded(kind):
        table = table.set_column(1, "x", pa.compute.run_end_encode(table["x"]))
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UsageError, match=r"input\.keep: column 'x': .* cannot be written to Parquet"):
        read(tmp_path)


# -- what is given -------------------------------------------------------------------------------------------------


def test_types_that_are_given_count_whatever_the_files_say(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", x=[1, "A0", None])
    write(tmp_path / "b.csv", x=["7", "007", "x"])
    write(tmp_path / "c.parquet", x=[2])
    _, columns, rows = read(tmp_path, types={"x": pa.int32()})
    assert columns.keep.field("x").type == pa.int32() and good(rows, "x") == [1, None, 7, 2]
    assert len(reasons(rows)) == 3 and "column 'x' is int32" in reasons(rows)[0]
    _, _, rows = read(tmp_path, types={"x": pa.string()})
    assert good(rows, "x") == ["1", "A0", None, "7", "007", "x", "2"]
    with pytest.raises(UsageError, match=r"input\.types: 'y' is not among input\.keep"):
        read(tmp_path, types={"y": pa.string()})


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.date32(), "2026-11-26", DAY.date()),
        (US, "2026-11-26 00:00:00", DAY),
        (pa.decimal128(10, 2), "1.25", decimal.Decimal("1.25")),
        (pa.float32(), "0.5", 0.5),
        (pa.bool_(), "true", True),
        (pa.list_(pa.int64()), [1, 2], [1, 2]),
    ],
)
def test_json_values_are_read_as_the_type_that_is_given(tmp_path: Path, kind: Any, value: Any, expected: Any) -> None:
    write(tmp_path / "a.jsonl", x=[value, {"no": "such"}])
    _, _, rows = read(tmp_path, types={"x": kind})
    assert good(rows, "x") == [expected] and len(reasons(rows)) == 1


def test_an_output_that_is_there_keeps_its_types(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=arr([1], pa.int32()))
    write(tmp_path / "b.parquet", x=arr([2], pa.int64()))
    write(tmp_path / "c.parquet", x=["c"])
    settled = pa.schema([("x", pa.int32()), ("y", pa.timestamp("s"))])
    corpus, columns, rows = read(tmp_path, keep=["x", "y"], settled=settled)
    assert columns.keep == settled and good(rows, "x") == [1, 2]
    assert "c.parquet: column 'x' is string, but it must be int32" in failed(corpus)["c.parquet"]
    write(tmp_path / "b.parquet", x=[2**40])
    with pytest.raises(
        InputError, match=r"b\.parquet: row 0: column 'x' is int32, and 1099511627776 \(int64\) does not fit"
    ):
        read(tmp_path, settled=settled)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "jsonl"])
def test_a_name_is_found_in_any_unicode_form(tmp_path: Path, form: str, suffix: str) -> None:
    folder = tmp_path / unicodedata.normalize(form, "연도=2026")
    folder.mkdir()
    write(
        folder / f"a.{suffix}", **{unicodedata.normalize(form, "제목"): ["가"], unicodedata.normalize(form, "번호"): ["1"]}
    )
    for asked in ("NFC", "NFD"):
        title, number, year = (unicodedata.normalize(asked, name) for name in ("제목", "번호", "연도"))
        _, columns, rows = read(tmp_path, keep=[number, year], text=title)
        assert columns.keep.names == [number, year]
        assert good(rows) == ["가"] and good(rows, number) == ["1"] and good(rows, year) == ["2026"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl"])
def test_a_field_of_a_struct_is_a_column(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", doc=[{"text": "가", "n": {"id": 1}}, {"text": None, "n": None}, None])
    _, columns, rows = read(tmp_path, keep=["doc.n.id"], text="doc.text")
    assert good(rows) == ["가"] and columns.keep.field("doc.n.id").type == pa.int64()
    assert [row["doc.n.id"] for row in rows] == [1, None, None]
    assert good(read(tmp_path, keep=[], text="[{doc.n.id}] {doc.text}")[2]) == ["[1] 가"]
    write(tmp_path / f"a.{suffix}", **{"doc.text": ["나"]})
    assert good(read(tmp_path, keep=[], text="doc.text")[2]) == ["나"]


def test_line_files_are_sampled_and_the_last_is_among_them(tmp_path: Path) -> None:
    for number in range(SAMPLE_FILES + 50):
        write(tmp_path / f"{number:04d}.jsonl", x=[number if number < SAMPLE_FILES + 49 else "last"])
    corpus, columns, _ = read(tmp_path)
    assert columns.keep.field("x").type == pa.string()
    assert any("types come from 256 of 306 line files; input.types overrides them" in line for line in corpus.notices)


def test_a_text_column_that_no_json_lines_file_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "가"}\n', "utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "나", "title": "다"}\n', "utf-8")
    corpus = list_corpus(str(tmp_path))
    assert inspect(corpus, "{title} {text}", (), LineOptions())[0].failed == ()
    with pytest.raises(InputError, match=r"a\.jsonl: no column 'titel'; it has 'text' \(set input\.text\)"):
        inspect(corpus, "{titel} {text}", (), LineOptions())


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.tsv", "하나\tone\n둘\ttwo\n", "if it has no header line, name its columns with input.columns"),
        ("a.csv", "id;text\n1;가\n", "if its values are separated by ';', set input.delimiter"),
    ],
)
def test_a_header_that_is_none_comes_with_a_hint(tmp_path: Path, name: str, content: str, hint: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=hint):
        inspect(list_corpus(str(tmp_path)), "text", (), LineOptions())
