"""``kosbert-ray rejected``: file, line, reason and text of each rejected row, and what helps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday

LINES = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in everyday()[:40]]


@pytest.fixture
def output(cli, tmp_path: Path) -> Path:
    """One null text and one broken line in files of lines, an empty text in a Parquet file."""
    source = tmp_path / "입력"
    source.mkdir()
    (source / "a.jsonl").write_bytes(
        b"\n".join([*LINES[:10], b'{"text": null}', *LINES[10:20], b'{"text": "x', *LINES[20:25]])
    )
    (source / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*LINES[25:], b"[1]\n"])))
    pq.write_table(pa.table({"text": ["비가 온다.", "", "눈이 온다."]}), source / "c.parquet")
    cli("embed", source, tmp_path / "out", "--model", TINY, "--set", "max_rejected=9", "--set", "slice.max_rows=7")
    return tmp_path / "out"


def test_each_rejected_row_has_its_line_and_what_helps(cli, output: Path) -> None:
    shown = cli("rejected", output).stdout.splitlines()
    assert shown[0].split() == ["file", "line", "reason", "text"]
    places = [line.split()[:2] for line in shown[1:5]]
    assert places == [["a.jsonl", "11"], ["a.jsonl", "22"], ["b.jsonl.gz", "row"], ["c.parquet", "row"]]
    assert shown[4].split()[:5] == ["c.parquet", "row", "1", "empty", "text"]
    assert shown[5] == f"rejected: 4 rows of {output}"
    assert "null text: on_bad_row=null_vector keeps these rows, with a null vector" in shown


def test_without_the_input_the_byte_is_shown(cli, output: Path) -> None:
    (output.parent / "입력" / "a.jsonl").write_bytes(b"\n".join(LINES))
    found = json.loads(cli("rejected", output, "--limit", "3", "--json").stdout)
    assert found["rows"] == 4 and len(found["shown"]) == 3
    assert [row["line"] for row in found["shown"]] == [None, None, None]
    assert [row["row"] for row in found["shown"]] == [None, None, 15]
    assert found["shown"][0]["byte_offset"] == sum(len(line) + 1 for line in LINES[:10])
    shown = cli("rejected", output, "--limit", "1").stdout.splitlines()
    assert shown[1].split()[:2] == ["a.jsonl", "byte"]
    assert shown[2] == f"rejected: the first 1 of 4 rows of {output}"


def test_an_output_without_rejected_rows_says_so(cli, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("비가 온다.\n", "utf-8")
    cli("embed", tmp_path / "in.txt", tmp_path / "out", "--model", TINY)
    assert cli("rejected", tmp_path / "out").stdout == f"rejected: 0 rows of {tmp_path / 'out'}\n"
