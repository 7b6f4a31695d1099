"""Conventions of other writers: each is read as they mean it, or the line says which option does."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import failures, good, notices, reasons, rows

from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.corpus.text import RowText
from kosbert_ray.errors import InputBroken, InputError

BACKSLASH = LineOptions(escape="\\")
# File, options, the texts of its rows.
READ: dict[str, tuple[str, bytes, LineOptions, list[str]]] = {
    "backslash before quotes": ("a.csv", b'text,id\n"a ""b"" \\"c\\" d",1\n', BACKSLASH, ['a "b" "c" d']),
    "backslash before itself": ("a.csv", b'text,id\n"a\\\\b",1\n', BACKSLASH, ["a\\b"]),
    "a lone CR in a value": ("a.csv", b"text,id\na\rb,1\n\r\rc,2\r\n", LineOptions(), ["a\rb", "\r\rc"]),
    "a lone CR in a TSV": ("a.tsv", b"id\ttext\r\n1\ta\rb\r\n", LineOptions(), ["a\rb"]),
    "a lone CR in quotes": ("a.csv", b'text,id\r\n"a\rb\r\nc",1\r\n', LineOptions(), ["a\rb\r\nc"]),
    "a CR more at the end": ("a.csv", b"id,text\n1,a\r\r\n", LineOptions(), ["a"]),
    "Excel's sep= line": ("a.csv", b"\xef\xbb\xbfsep=;\r\nid;text\r\n1;a,b\r\n", LineOptions(), ["a,b"]),
    "a blank first line": ("a.csv", b"\n\nid,text\n1,a\n", LineOptions(), ["a"]),
    "a byte order mark": ("a.csv", b"\xef\xbb\xbftext,id\na,1\n", LineOptions(encoding="utf-8-sig"), ["a"]),
    "a byte order mark in JSON lines": ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}', LineOptions(encoding="utf-8-sig"), ["a"]),
    "headers between the rows": ("a.csv", b"id,text\n1,a\nid,text\n2,b\nid,text\n", LineOptions(), ["a", "b"]),
    "a value that is the header's": ("a.csv", b"text\na\ntext\n", LineOptions(), ["a", "text"]),
    "names given and a row like them": ("a.csv", b"id,text\n1,a\n", LineOptions(columns=("id", "text")), ["text", "a"]),
    "names that repeat and are not asked for": ("a.csv", b"text,,\na,1,2\n", LineOptions(), ["a"]),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("limits", [Limits(), Limits(1, 10)])
def test_a_file_is_read_as_its_writer_meant_it(tmp_path: Path, name: str, limits: Limits) -> None:
    file, content, options, expected = READ[name]
    (tmp_path / file).write_bytes(content)
    if b'"' in content and limits != Limits():
        options = options.model_copy(update={"newlines_in_values": True})
    found = rows(tmp_path, limits=limits, options=options)
    assert good(found) == expected and not reasons(found)


def test_null_values_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,\\N\n\\N,a\n3,NULL\n")
    found = rows(tmp_path, keep=["id"], options=LineOptions(null_values=("\\N", "NULL")))
    assert good(found) == ["a"] and good(found, "id") == [None]
    assert reasons(found) == ["null text", "null text"]
    assert len(good(rows(tmp_path))) == 3


# File, text column, what the reasons of its rows (or the notices) say.
HINTS: dict[str, tuple[str, bytes, str]] = {
    "quotes behind a backslash": ("a.csv", b'text,id\n"a \\"b\\" c",1\n', 'read with input.escape="\\"'),
    "cp949": ("a.txt", "가나\n".encode("cp949") + "다\n".encode(), "it is valid cp949 (input.encoding=cp949)"),
}


@pytest.mark.parametrize("name", HINTS)
def test_a_reason_names_the_option_that_helps(tmp_path: Path, name: str) -> None:
    file, content, said = HINTS[name]
    (tmp_path / file).write_bytes(content)
    (reason,) = reasons(rows(tmp_path))
    assert said in reason


def test_euc_kr_that_is_really_cp949_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("똠방각하\n펩시\n".encode("cp949"))
    found = rows(tmp_path, options=LineOptions(encoding="euc-kr"))
    assert good(found) == ["펩시"] and "it is valid cp949" in reasons(found)[0]
    assert "1 of its first 2 lines are not euc-kr, but all are valid cp949" in notices(
        tmp_path, options=LineOptions(encoding="euc-kr")
    )


NOTICES: dict[str, tuple[str, bytes, str, str]] = {
    "a TSV by pandas": (
        "a.tsv",
        b'id\ttext\n1\t"a ""b"" c"\n',
        "text",
        "set input.quoting=minimal to read them as CSV does",
    ),
    "a TSV called .txt": (
        "ratings.txt",
        b"id\tdocument\tlabel\n1\ta\t0\n",
        "document",
        "every line has 2 tabs, and its first line names 'document', and each line is embedded as a whole; "
        "set input.format=tsv",
    ),
    "headers between the rows": ("a.csv", b"id,text\n1,a\nid,text\n2,b\n", "text", "its header line is repeated"),
    "all lines in cp949": ("a.txt", "가\n나\n".encode("cp949"), "text", "2 of its first 2 lines are not utf-8"),
}


@pytest.mark.parametrize("name", NOTICES)
def test_what_may_not_be_meant_is_said_before_it_is_embedded(tmp_path: Path, name: str) -> None:
    file, content, text, said = NOTICES[name]
    (tmp_path / file).write_bytes(content)
    assert said in notices(tmp_path, text)
    (tmp_path / "b.txt").write_text("한 줄\n또 한 줄\n")
    (tmp_path / file).unlink()
    assert not notices(tmp_path)


@pytest.mark.parametrize(
    ("header", "keep"), [("id,text,text", []), ("id,text,id", ["id"])], ids=["the text's name twice", "a kept name twice"]
)
def test_a_name_that_stands_twice_is_refused_where_it_is_asked_for(tmp_path: Path, header: str, keep: list[str]) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n1,첫째,둘째\n")
    with pytest.raises(InputError, match="appears 2 times in its header; give each its own name"):
        rows(tmp_path, keep=keep)
    (tmp_path / "b.csv").write_text("id,text\n1,a\n")
    assert [reason for reason in failures(tmp_path, keep=keep) if "a.csv: column" in reason]


INVISIBLE = ["\u3164", "\u200b", "\u2800", "\0", " \u3164\u200b\t", "\ufeff", "\u115f\u1160", "\u00ad", "\ufe0f", "\x1b"]


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_a_text_of_invisible_characters_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": f"{text}가{text}"}))
    found = rows(tmp_path)
    assert good(found) == [f"{text}가{text}"] and reasons(found) == ["empty text"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_are_text_where_they_are_utf_8(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["가".encode(), b"\xff", None, b"b"]).cast(kind)}), tmp_path / "a.parquet")
    found = rows(tmp_path)
    assert good(found) == ["가", "b"] and reasons(found) == ["column 'text' is not UTF-8", "null text"]
    assert good(rows(tmp_path, "[{text}]")) == ["[가]", "[b]"]


VALUES = [1, 1.0, 1e-7, 0.1, 2026.0, 1e20, 123456789.125, -0.5, None, float("nan")]


def test_a_number_in_a_template_is_spelled_alike_in_each_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": ["글"] * len(VALUES), "n": pa.array(VALUES, pa.float64())}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"t": "글", "n": value}) for value in VALUES))
    found = good(rows(tmp_path, "{t} {n}"))
    half = len(VALUES)
    assert found[:half] == found[half:]
    assert found[:5] == ["글 1", "글 1", "글 1e-7", "글 0.1", "글 2026"] and found[-2:] == ["글 ", "글 "]


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (datetime.date(2026, 11, 26), "2026-11-26"),
        (datetime.datetime(2026, 11, 26, 1, 2, 3), "2026-11-26 01:02:03.000000"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.time(1, 2, 3), "01:02:03.000000"),
    ],
    ids=str,
)
def test_dates_and_decimals_go_into_a_template(tmp_path: Path, value: object, spelled: str) -> None:
    pq.write_table(pa.table({"day": [value]}), tmp_path / "a.parquet")
    assert good(rows(tmp_path, "[{day}]")) == [f"[{spelled}]"]
    with pytest.raises(
        InputError, match=r"column 'day' is .*, not a string; .*or use it as it is in a template \(\{day\}\)"
    ):
        rows(tmp_path, "day")


def test_a_later_file_without_the_text_column_fails_by_name_when_it_is_read(tmp_path: Path) -> None:
    for name, column in (("a", "text"), ("b", "body")):
        table = pa.table({column: ["글"]})
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    assert failures(tmp_path) == [f"{tmp_path}/b.arrow: no column 'text'; it has 'body' (set input.text)"]
    assert good(rows(tmp_path, RowText("text"))) == ["글"]


def test_rows_before_a_fault_are_slices_and_the_file_fails(tmp_path: Path) -> None:
    content = "\n".join(json.dumps({"text": f"글 {number}"}) for number in range(5000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content) + b"junk")
    corpus, columns = inspect(list_corpus(str(tmp_path)), "text", [], LineOptions())
    (fragment,) = plan(corpus.files, Limits(2000))
    found = []
    slices = FragmentReader(corpus.storage, columns, LineOptions(), Limits(2000)).slices(fragment)
    with contextlib.suppress(InputBroken):
        found.extend((piece.rows, piece.last) for piece, _ in slices)
        raise AssertionError("the fault is told after the rows before it")
    assert found == [(2000, False), (2000, False), (1000, False)]
