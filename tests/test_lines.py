"""Whole lines out of byte ranges and compressed streams."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosbert_ray.corpus.lines import LineOptions, first_lines, read_lines
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.errors import InputError, UsageError

contents = st.lists(st.sampled_from([b"", b"a", b"bb\r", "가나다".encode(), b"x" * 40]), max_size=30).map(b"\n".join)


@given(contents, st.integers(1, 60))
def test_every_line_is_in_exactly_one_byte_range(content: bytes, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(content)
        corpus = list_corpus(folder)
        found = []
        for start in range(0, len(content), step):
            for block in read_lines(corpus.storage, corpus.files[0], start, min(start + step, len(content))):
                at = block.position
                for line in block.lines:
                    assert content[at : at + len(line)] == line, "a position is where its line begins"
                    assert start <= at < start + step
                    at += len(line) + 1
                found += block.lines
    expected = content.split(b"\n")
    assert found == (expected[:-1] if not expected[-1] else expected)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_compressed_file_gives_all_its_lines_with_their_numbers(tmp_path: Path, codec: str, ending: bytes) -> None:
    expected = [f"줄 {number}".encode() for number in range(200_000)]
    name = {"gzip": "a.txt.gz", "zstd": "a.txt.zst"}[codec]
    with pa.CompressedOutputStream(str(tmp_path / name), codec) as out:
        out.write(b"\n".join(expected) + ending)
    corpus = list_corpus(str(tmp_path))
    blocks = list(read_lines(corpus.storage, corpus.files[0], 0, corpus.files[0].size))
    assert [line for block in blocks for line in block.lines] == expected
    assert len(blocks) > 1, "it is not held whole"
    at = 0
    for block in blocks:
        assert block.unit == "line"
        if block.lines:
            assert block.position == at
        at += len(block.lines)
    assert sum(block.read for block in blocks) == corpus.files[0].size


def test_a_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\nb\n") + gzip.compress(b"c\n"))
    corpus = list_corpus(str(tmp_path))
    assert first_lines(corpus.storage, corpus.files[0], 10) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("codec", "name"), [("gzip", "a.txt.gz"), ("zstd", "a.txt.zst")])
def test_compressed_data_that_is_cut_short_or_broken_names_the_file(tmp_path: Path, codec: str, name: str) -> None:
    with pa.CompressedOutputStream(str(tmp_path / name), codec) as out:
        out.write(b"".join(b"%d\n" % (number * 7919) for number in range(100_000)))
    whole = (tmp_path / name).read_bytes()
    for broken in (whole[: len(whole) // 2], b"this is not compressed at all, whatever its name says"):
        (tmp_path / name).write_bytes(broken)
        corpus = list_corpus(str(tmp_path))
        with pytest.raises(InputError, match=f"{name}: broken or cut-short {codec}"):
            list(read_lines(corpus.storage, corpus.files[0], 0, len(broken)))


def test_a_line_of_over_64_mib_is_refused_instead_of_filling_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(65 * 2**20)
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError, match="over 64 MiB"):
        list(read_lines(corpus.storage, corpus.files[0], 0, corpus.files[0].size))


def test_an_encoding_whose_newline_is_not_one_byte_is_refused() -> None:
    with pytest.raises(UsageError, match="utf-16"):
        LineOptions(encoding="utf-16")
    with pytest.raises(UsageError, match="no such encoding"):
        LineOptions(encoding="klingon")
