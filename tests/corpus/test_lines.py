"""Whole lines out of byte ranges and compressed streams."""

from __future__ import annotations

import gzip
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import content_of

from kosbert_ray.corpus.lines import first_lines, read_lines
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.errors import InputBroken, InputError, UsageError

contents = st.lists(st.sampled_from([b"", b"a", b"bb\r", "가나다".encode(), b"x" * 40]), max_size=30).map(b"\n".join)


@given(contents, st.integers(1, 60))
def test_every_line_is_in_exactly_one_byte_range(content: bytes, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(content)
        corpus = list_corpus(folder)
        found = []
        for start in range(0, len(content), step):
            for block in read_lines(
                corpus.storage, corpus.files[0], content_of(corpus.files[0]), start, min(start + step, len(content))
            ):
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
    blocks = list(read_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 0, corpus.files[0].size))
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
    assert first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("codec", "name"), [("gzip", "a.txt.gz"), ("zstd", "a.txt.zst")])
def test_compressed_data_that_is_cut_short_or_broken_names_the_file(tmp_path: Path, codec: str, name: str) -> None:
    with pa.CompressedOutputStream(str(tmp_path / name), codec) as out:
        out.write(b"".join(b"%d\n" % (number * 7919) for number in range(100_000)))
    whole = (tmp_path / name).read_bytes()
    plain = b"this is not compressed at all, whatever its name says"
    for broken, reason in (
        (whole[: len(whole) // 2], f"corrupt or truncated {codec}"),
        (plain, "but plain text; rename it"),
    ):
        (tmp_path / name).write_bytes(broken)
        corpus = list_corpus(str(tmp_path))
        found = []
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            found += read_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 0, len(broken))


def test_a_line_of_over_64_mib_is_refused_instead_of_filling_the_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * (65 * 2**20))
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError, match="over 64 MiB"):
        list(read_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 0, corpus.files[0].size))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "iso2022_kr"])
def test_an_encoding_that_cannot_be_cut_at_newlines_is_refused(encoding: str) -> None:
    with pytest.raises(UsageError, match=f"{encoding} cannot be split at line ends"):
        LineOptions(encoding=encoding)


@pytest.mark.parametrize("encoding", ["cp949", "euc-kr", "johab", "latin-1", "shift_jis", "gb18030", "utf-8-sig"])
def test_an_encoding_of_whole_lines_is_taken(encoding: str) -> None:
    LineOptions(encoding=encoding)


def test_the_options_that_0_1_0_knew_are_told_as_it_told_them() -> None:
    told = "LineOptions(delimiter=None, quoting=None, newlines_in_values=False, columns=(), encoding='utf-8')"
    assert LineOptions().recorded() == told, "it is part of the fingerprint"
    assert LineOptions(escape="\\").recorded() == told[:-1] + ", escape='\\\\')"


def blocks_until_the_fault(folder: Path) -> tuple[list[bytes], str]:
    corpus = list_corpus(str(folder))
    found: list[bytes] = []
    try:
        for block in read_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 0, corpus.files[0].size):
            found += block.lines
    except InputBroken as error:
        return found, str(error)
    raise AssertionError("nothing is broken")


def test_padding_after_gzip_data_is_no_fault_and_other_bytes_are_told_after_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n") + b"\0" * 512)
    corpus = list_corpus(str(tmp_path))
    assert first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10) == [b"a", b"b"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\nb\n") + b"junk")
    lines, reason = blocks_until_the_fault(tmp_path)
    assert (
        lines[:2] == [b"a", b"b"]
        and not any(lines[2:])
        and "followed by bytes that are not gzip data; the rows before them are valid" in reason
    )


def test_the_lines_before_a_fault_are_read(tmp_path: Path) -> None:
    content = b"".join(b"%d\n" % (number * 7919**3) for number in range(200_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content)[:-1000])
    lines, _ = blocks_until_the_fault(tmp_path)
    assert len(lines) > 100_000 and lines == content.split(b"\n")[: len(lines)]


def test_a_zstd_window_that_is_too_long_says_how_to_compress_it(tmp_path: Path) -> None:
    descriptor = bytes([0x00, 21 << 3])  # of a frame with a window of 2 GiB, as zstd --long=31 writes it
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd" + descriptor + b"\x09\x00\x00a" + b"\x00" * 9)
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError, match=r"a\.txt\.zst: compressed with too long a window .*without --long"):
        first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10)


def archive(path: Path, **members: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def test_a_zip_of_several_parts_is_read_one_after_another(tmp_path: Path) -> None:
    archive(tmp_path / "a.csv.zip", **{"1.csv": "t\r\na", "__MACOSX/._1.csv": "x", "2.csv": "t\r\nb\r\n", ".DS_Store": "x"})
    corpus = list_corpus(str(tmp_path))
    assert first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10) == [b"t\r", b"a", b"t\r", b"b\r"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"1.csv": "t\na\n", "2.csv": "u\nb\n"}, "the headers of its files differ"),
        ({"1.csv": "t\na\n", "2.txt": "b\n"}, "2.txt cannot be read as .csv; unpack it"),
        ({"__MACOSX/x": ""}, "an archive without files"),
    ],
)
def test_a_zip_of_unlike_files_says_why(tmp_path: Path, members: dict[str, str], reason: str) -> None:
    archive(tmp_path / "a.csv.zip", **members)
    corpus = list_corpus(str(tmp_path))
    with pytest.raises(InputError, match=reason):
        first_lines(corpus.storage, corpus.files[0], content_of(corpus.files[0]), 10)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(UsageError, match="no such encoding"):
        LineOptions(encoding="klingon")
