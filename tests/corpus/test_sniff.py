"""Content that is not what a file's name says is recognised by its first bytes, and the line says what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import content_of

from kosbert_ray.corpus.lines import first_lines, read_lines
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.errors import InputError

TEXT = "가나다 라마\n바사 아자\n"


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT.encode())
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return sink.getvalue()


def arrow(file: bool) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["가"]})
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["가"]}), sink)
    return sink.getvalue().to_pybytes()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (a)")
        return database.serialize() if hasattr(database, "serialize") else b"SQLite format 3\0"


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
ASCII = "one line\nand another one\n" * 9
CASES: list[tuple[str, bytes, str]] = [
    ("a.txt", TEXT.encode("utf-16"), "UTF-16 text; convert it with iconv"),
    ("a.csv", b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16 text"),
    ("a.txt", TEXT.encode("utf-32"), "UTF-32 text"),
    ("a.txt", TEXT.encode("utf-16-le"), "UTF-16 text without a byte order mark; convert it with iconv -f UTF-16-LE"),
    ("a.txt", ASCII.encode("utf-16-le"), "UTF-16-LE"),
    ("a.txt", ASCII.encode("utf-16-be"), "UTF-16-BE"),
    ("a.txt", ASCII.encode("utf-32-le"), "UTF-32 text without a byte order mark"),
    ("a.txt", bytes(5000), "binary data"),
    ("a.jsonl", gzip.compress(TEXT.encode()), "gzip data; rename it to end in .gz"),
    ("a.txt", bz2.compress(TEXT.encode()), "bzip2 data; recompress"),
    ("a.txt", lzma.compress(TEXT.encode()), "xz data; recompress"),
    ("a.csv", zipped(), "a zip archive or an Office file"),
    ("a.txt", tar(), "a tar archive; unpack it"),
    ("a.txt.gz", gzip.compress(tar()), "a tar archive; unpack it"),
    ("a.jsonl", parquet(), "a Parquet file; rename it to end in .parquet"),
    ("a.jsonl", arrow(True), "an Arrow file; rename it"),
    ("a.jsonl", arrow(False), "an Arrow stream; rename it"),
    ("a.csv", sqlite(), "an SQLite database"),
    ("a.txt", b"%PDF-1.7\n", "a PDF document"),
    ("a.csv", b"ORC\n\x1e\n\x0a\x12\xff\xfe\xc0\x08\x00" * 20, "an ORC file"),
    ("a.jsonl", LFS.encode(), "a Git LFS pointer, not the file itself; run git lfs pull"),
    ("a.jsonl", b'[\n{"text": "a"}\n]', "a JSON document (one array), not JSON lines; convert it with jq -c '.[]'"),
    ("a.jsonl", b'\xef\xbb\xbf [{"text": "a"}]', "a JSON document (one array)"),
    ("a.jsonl", b'{\r\n  "text": "a"\n}', "JSON spread over several lines"),
    ("a.jsonl", b"<?xml version='1.0'?>\n<a/>", "an XML document"),
    ("a.csv", b"\n<!DOCTYPE html>\n<html>", "an HTML page, perhaps an error page"),
    ("a.txt", "가\r나\r다\r".encode(), "text whose lines end in CR only"),
    ("a.csv", b"id,text\r1,a\r", "text whose lines end in CR only"),
    ("a.jsonl.gz", TEXT.encode(), "not gzip data but plain text; rename it without its last extension"),
    ("a.txt.zst", gzip.compress(b"x"), "not zstd data but gzip data"),
    ("a.txt.gz", b"\x01\x02\xff\xfe\xfd" * 9, "not gzip data, despite its extension"),
]


@pytest.mark.parametrize(("name", "content", "said"), CASES, ids=[f"{name}: {said[:40]}" for name, _, said in CASES])
def test_what_a_file_really_is_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError) as raised:
        first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10)
    assert str(raised.value).startswith(f"{tmp_path / name}: ")
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"nul\0inside\n"),
        ("a.txt", "한 줄\r".encode()),
        ("a.txt", "한글".encode("cp949") * 3000),
        ("a.txt", b"[1] a line in brackets\n"),
        ("a.txt", b"{\n"),
        ("a.jsonl", b'\n{"text": "a"}\n'),
        ("a.csv", b'"[",{\n'),
        ("a.txt", b"<html> is a tag\n"),
        ("a.csv", b"ORCHID,text\n1,a\n"),
        ("a.txt", b"BZh is a name\n"),
        ("a.txt", b"PAR1 and ARROW1 are words\n"),
        ("a.txt", "가".encode() * 2000),
    ],
)
def test_text_is_not_taken_for_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    corpus = list_corpus(str(tmp_path))
    assert first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10)


def test_a_later_part_of_a_file_knows_what_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((TEXT * 999).encode("utf-16"))
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError, match="UTF-16 text"):
        list(read_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 5000, 9000))


def test_an_empty_file_has_no_lines_in_any_format(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv.gz", "c.jsonl.zst", "d.tsv.zip"):
        (tmp_path / name).write_bytes(b"")
    corpus = list_corpus(str(tmp_path))
    assert [first_lines(corpus.storage, file, content_of(file), 10) for file in corpus.files] == [[], [], [], []]
