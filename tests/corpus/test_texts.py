"""Weird texts, names and sizes, in every format, on disk and in S3: each row comes out as it went in, or with a reason."""

from __future__ import annotations

import gzip
import json
import posixpath
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rows import good, reasons, rows

from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.text import decomposed
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.model.source import bundled_path
from kosbert_ray.model.spec import read_spec

WEIRD = [
    "가",  # decomposed (NFD) Hangul
    "e\u0301\u0323 combining",
    "👩‍👩‍👧‍👦🏳️‍🌈 이모지",
    "\ue000 private use \U0010fffd",
    "nul\0inside",
    "\u202e오른쪽에서 왼쪽\u202c \u200f",
    "\ufeff문장 안의 \ufeff BOM",
    "line\u2028separator\u2029 and \x85 next line",
    "tab\tand \\ backslash \"quotes\" 'and' `ticks`",
    "\x1b[31mescape\x07",
    "zero\u200bwidth\u200d\u2060",
    "한\u00a0글\u3000공백",
    "ﬁ ligature ㈜ ½ Å",
]
# What no line format can hold is left out where it is used: a newline in plain text, a lone surrogate anywhere.
texts = st.lists(st.one_of(st.sampled_from(WEIRD), st.text(st.characters(codec="utf-8"), max_size=30)), max_size=30)


def empty(text: str) -> bool:
    invisible = "\u115f\u1160\u3164\uffa0\u2800\u034f" + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0x180B, 0x1810)]))
    return all(unicodedata.category(c)[0] == "Z" or unicodedata.category(c) in ("Cc", "Cf") or c in invisible for c in text)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@settings(max_examples=25, deadline=None)
@given(texts, st.integers(1, 40), st.integers(1, 300))
@example(WEIRD, 3, 100)
def test_any_text_comes_back_as_it_was_written(tmp_path_factory, kind: str, texts, max_rows: int, max_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("texts")
    if kind == "parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "a.parquet", row_group_size=7)
    else:
        content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()
        (folder / f"a.{kind}").write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    found = rows(folder, limits=Limits(max_rows, max_bytes))
    assert good(found) == [text for text in texts if not empty(text)]
    assert reasons(found) == ["empty text"] * sum(map(empty, texts))


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(1, 300), st.sampled_from(["\n", "\r\n"]), st.booleans())
@example(WEIRD, 100, "\r\n", True)
def test_plain_text_has_every_line_whatever_it_ends_with(
    tmp_path_factory, texts, max_bytes: int, end: str, bom: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    lines = [text.replace("\n", " ").replace("\r", " ") for text in texts]
    (folder / "a.txt").write_bytes((("\ufeff" if bom else "") + end.join(lines)).encode())
    expected = [line for line in lines if line.strip()]
    if lines and not bom and lines[0].startswith("\ufeff"):  # at a file's start it is a mark, not a character
        lines[0] = lines[0][1:]
        expected = [line for line in lines if line.strip()]
    found = rows(folder, limits=Limits(5, max_bytes))
    assert [row["__text"] for row in found] == expected


@settings(max_examples=25, deadline=None)
@given(texts)
@example(WEIRD)
def test_any_text_is_tokenised(texts) -> None:
    tokenizer = Tokenizer.load(read_spec(bundled_path("bundled:kosbert-mini")))
    tokens = tokenizer(texts)
    assert not tokens.failed
    assert len(tokens.rows) == len(texts)
    assert all(length >= 2 for length in tokens.lengths.tolist())


def test_lone_surrogates_are_rejected_and_pairs_are_not(tmp_path: Path) -> None:
    lines = ['{"text": "\\ud800"}', '{"text": "\\udc00\\ud800"}', '{"text": "\\ud83d\\ude00"}', '{"text": "\\u0000가"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = rows(tmp_path)
    assert good(found) == ["😀", "\0가"]
    assert len(reasons(found)) == 2


def test_a_line_of_50_mb_is_a_row(tmp_path: Path) -> None:
    long = "가나다라마바사" * (50 * 10**6 // 21)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(json.dumps({"text": text}).encode() for text in ("앞", "뒤")))
    (tmp_path / "b.txt").write_bytes(f"앞\n{long}\n뒤".encode())
    found = good(rows(tmp_path, limits=Limits(10, 2**20)))
    assert [len(text) for text in found] == [1, 1, 1, len(long), 1]


def test_a_million_empty_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n" * 10**6)
    (tmp_path / "b.jsonl").write_bytes(b"\r\n" * 10**6)
    (tmp_path / "c.csv").write_bytes(b"text\n" + b"\n" * 10**5 + "가\n".encode())
    (tmp_path / "d.txt").touch()
    assert good(rows(tmp_path)) == ["가"]


NAMES = [
    "with space.jsonl",
    "100%.jsonl",
    "%20.jsonl",
    "a#b.jsonl",
    "a+b&c=d.jsonl",
    "질문과 답변.jsonl",
    "질문.jsonl",
    "x/part.jsonl",
    "y/part.jsonl",
    "나/part.jsonl",
    "a'b\"c.jsonl",
    "semi;colon,comma.jsonl",
    "no-rows.jsonl",
    "....jsonl",
    "very" * 40 + ".jsonl",
]


PLACES = [pytest.param("disk", marks=pytest.mark.faults), pytest.param("s3", marks=pytest.mark.slow)]


@pytest.mark.parametrize("where", PLACES)
def test_files_of_any_name_are_embedded_and_their_shards_stay_in_the_output(
    cli, request, tmp_path: Path, where: str
) -> None:
    expected = []
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    contents = {}
    for number, name in enumerate(NAMES):
        text = f"{everyday()[number]} {WEIRD[number % len(WEIRD)]}"
        contents[name] = b"" if name == "no-rows.jsonl" else json.dumps({"text": text, "file": name}).encode()
        if contents[name]:
            expected.append((name, text))
    hidden = {name for name in NAMES if posixpath.basename(name).startswith((".", "_"))}
    expected = sorted(pair for pair in expected if pair[0] not in hidden)
    env = {}
    if where == "disk":
        for name, content in contents.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        s3 = request.getfixturevalue("s3")
        files, env = s3.filesystem(), s3.env
        files.mkdir("texts")
        for name, content in contents.items():
            files.pipe_file(f"texts/in/{name}", content)
        source, target = "s3://texts/in", "s3://texts/out"
    settings = ["--model", TINY, "--keep", "text,file", "--set", "encoder.actors=1"]
    cli("embed", source, target, *settings, env=env)
    assert f"all {len(expected)} rows" in cli("verify", target, "--input", source, env=env).stdout
    if where == "s3":
        files.get("texts/out", str(tmp_path / "got"), recursive=True)
        target = str(tmp_path / "got")
    table = ds.dataset(target, format="parquet").to_table()
    assert sorted(zip(table["file"].to_pylist(), table["text"].to_pylist(), strict=True)) == expected
    assert {path.parent for path in Path(target).rglob("*.parquet") if "_kosbert" not in path.parts} == {Path(target)}


def test_decomposed_hangul_is_counted() -> None:
    texts = ["한국어", unicodedata.normalize("NFD", "한국어"), "abc", "ㅋㅋ", None]
    assert decomposed(pa.array(texts, pa.large_string())) == 1
