"""Lines become rows; what cannot be used is a row with a reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import failures, good, reasons, rows

from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import POSITION, TEXT
from kosbert_ray.errors import InputError


def test_jsonl_rows_that_cannot_be_used_say_why_and_their_neighbours_are_kept(tmp_path: Path) -> None:
    lines = [
        b'{"text": "\xea\xb0\x80", "id": 1}',
        b'{"text": "b", "id": ',
        b"[1, 2]",
        b'{"id": 3}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'{"text": 5}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": "\xeb\x82\x98", "id": 9}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = rows(tmp_path, keep=["id"])
    assert good(found) == ["가", "나"]
    expected = ["bad JSON", "a JSON list", "null text", "null text", "empty text", "is int, not a string"]
    expected += ["invalid utf-8 at its byte 10", "lone surrogate"]
    for reason, found_reason in zip(expected, reasons(found), strict=True):
        assert reason in found_reason
    starts = [sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines)) if lines[number]]
    assert [row[POSITION] for row in found] == starts


def test_a_value_unlike_the_first_thousand_rows_is_rejected_not_cast(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"문장 {number}", "id": number}) for number in range(1500)]
    lines[1200] = json.dumps({"text": "다른 것", "id": "abc"})
    lines[1300] = json.dumps({"text": "너무 큰 것", "id": 2**70})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = rows(tmp_path, keep=["id"])
    assert len(good(found)) == 1498
    assert good(found, "id")[:3] == [0, 1, 2]
    assert all("column 'id' is int64 in the first rows" in reason for reason in reasons(found))


def test_nested_and_mixed_json_is_kept_as_a_string_of_json(tmp_path: Path) -> None:
    lines = [{"text": "가", "tags": ["a"], "n": 1}, {"text": "나", "tags": None, "n": "x"}, {"text": "다", "n": 1.5}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = rows(tmp_path, keep=["tags", "n"])
    assert good(found, "tags") == ['["a"]', None, None]
    assert good(found, "n") == ["1", "x", "1.5"]


def test_plain_text_has_a_row_a_line_blank_lines_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff첫째\r\n\r\n둘째\n   \n셋째".encode())
    assert good(rows(tmp_path, keep=["text"])) == ["첫째", "둘째", "셋째"]


def test_korean_in_cp949_is_read_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\n1,똠방각하\n2,펩시콜라\n".encode("cp949"))
    assert good(rows(tmp_path, options=LineOptions(encoding="cp949"))) == ["똠방각하", "펩시콜라"]
    assert not good(rows(tmp_path)), "as utf-8 it is invalid, and said so"


def test_tsv_has_no_quoting_and_csv_has(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"따옴표로 시작\n2\t쉼표, 있음\n')
    assert good(rows(tmp_path)) == ['"따옴표로 시작', "쉼표, 있음"]
    (tmp_path / "a.tsv").unlink()
    (tmp_path / "a.csv").write_text('id,text\n1,"쉼표, 그리고 ""따옴표"""\n2,"두\n줄"\n3,하나,더\n')
    found = rows(tmp_path)
    assert good(found) == ['쉼표, 그리고 "따옴표"', "두\n줄"]
    assert reasons(found) == ["3 values, but 2 columns"]


def test_csv_without_a_header_takes_its_names_from_the_options(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\t가\n2\t나\n")
    assert good(rows(tmp_path, options=LineOptions(columns=("id", "text")))) == ["가", "나"]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(cells, cells), max_size=40), st.integers(1, 60))
def test_csv_written_by_a_library_is_read_back_row_by_row(tmp_path_factory, records, max_rows) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "text"), *records])
    found = rows(folder, keep=["id"], limits=Limits(max_rows, 50), options=LineOptions(newlines_in_values=True))
    assert [(row["id"], row[TEXT]) for row in found] == records


def test_a_quoted_value_that_is_cut_by_a_byte_range_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n" + '1,"여러\n줄\n에\n걸친\n글"\n' * 50)
    with pytest.raises(InputError, match="input.newlines_in_values=true"):
        rows(tmp_path, limits=Limits(10, 100))
    assert len(good(rows(tmp_path, limits=Limits(10, 100), options=LineOptions(newlines_in_values=True)))) == 50


def test_columns_may_stand_in_another_order_in_each_csv_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,가\n")
    (tmp_path / "b.csv").write_text("text,id\n나,2\n")
    assert [(row["id"], row[TEXT]) for row in rows(tmp_path, keep=["id"])] == [("1", "가"), ("2", "나")]
    (tmp_path / "c.csv").write_text("id,other\n1,가\n")
    assert len(rows(tmp_path)) == 2
    assert [reason for reason in failures(tmp_path) if "c.csv: no column 'text'; it has 'id', 'other'" in reason]
