"""INPUT as a file, a folder, a glob."""

from __future__ import annotations

from pathlib import Path

import pytest

from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.errors import InputError, StorageError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.csv.gz", "sub/c.parquet", "sub/deep/d.txt.zst", "_old/e.jsonl", ".f.jsonl", "notes.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(address: object) -> list[str]:
    return [file.name for file in list_corpus(str(address)).files]


def test_a_folder_is_searched_through_without_hidden_names(corpus: Path) -> None:
    assert names(corpus) == ["a.jsonl", "b.csv.gz", "sub/c.parquet", "sub/deep/d.txt.zst"]
    assert list_corpus(str(corpus)).ignored == 1


def test_a_file_and_globs_name_exactly_what_they_match(corpus: Path) -> None:
    assert names(corpus / "a.jsonl") == ["a.jsonl"]
    assert names(corpus / "*.jsonl") == ["a.jsonl"]
    assert names(corpus / "**" / "*.zst") == ["sub/deep/d.txt.zst"]
    assert names(corpus / "[ab].*") == ["a.jsonl", "b.csv.gz"]


def test_format_and_compression_follow_the_name_unless_told(corpus: Path) -> None:
    files = {file.name: (file.format, file.compression) for file in list_corpus(str(corpus)).files}
    assert files["b.csv.gz"] == ("csv", "gzip")
    assert files["sub/deep/d.txt.zst"] == ("text", "zstd")
    assert {file.format for file in list_corpus(str(corpus / "*.pdf"), format="text").files} == {"text"}


def test_what_is_not_there_is_named(corpus: Path) -> None:
    with pytest.raises(StorageError, match="nowhere: no such file or folder"):
        list_corpus(str(corpus / "nowhere"))
    (corpus / "empty").mkdir()
    with pytest.raises(InputError, match="the folder holds no files"):
        list_corpus(str(corpus / "empty"))
    with pytest.raises(InputError, match="no file matches"):
        list_corpus(str(corpus / "*.tsv"))
    with pytest.raises(InputError, match=r"notes\.pdf.*input\.format"):
        list_corpus(str(corpus / "notes.pdf"))
