"""A local file that was only touched, copied or restored keeps its identity."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kosbert_ray.corpus.identity import HASHES_FOLDER, BackgroundHashing, FileHashes
from kosbert_ray.corpus.listing import Corpus, list_corpus
from kosbert_ray.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("가.jsonl", "b.jsonl"):
        (tmp_path / "in" / name).write_text('{"text": "하나"}\n', "utf-8")
    return tmp_path


def listed(folder: Path) -> Corpus:
    return list_corpus(str(folder / "in"))


def versions(corpus: Corpus) -> dict[str, set[str]]:
    return {file.name: {file.version} for file in corpus.files}


def hashed(folder: Path, corpus: Corpus) -> None:
    with BackgroundHashing(FileHashes(Storage(str(folder / "out")), "run"), corpus):
        pass


def test_a_touched_file_of_the_same_content_is_the_same(folder: Path) -> None:
    corpus = listed(folder)
    hashed(folder, corpus)
    os.utime(folder / "in" / "가.jsonl", (1, 1))
    hashes = FileHashes(Storage(str(folder / "out")), "later")
    settled = hashes.settle(listed(folder), versions(corpus))
    assert settled.same == ("가.jsonl",)
    assert settled.changed == {}
    (file,) = (file for file in settled.corpus.files if file.name == "가.jsonl")
    assert (file.version, file.listed) == (versions(corpus)["가.jsonl"].pop(), (file.size, str(10**9)))
    # Its new modification time is remembered: nothing is hashed again.
    hashes.flush()
    os.chmod(folder / "in" / "가.jsonl", 0)
    again = FileHashes(Storage(str(folder / "out")), "latest").settle(listed(folder), versions(corpus))
    assert again.same == ("가.jsonl",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [('{"text": "둘둘"}\n', "its content differs (XXH128)"), ('{"text": "하나 더"}\n', "its size changed from ")],
)
def test_why_a_file_counts_as_changed_is_told(folder: Path, content: str, reason: str) -> None:
    corpus = listed(folder)
    hashed(folder, corpus)
    (folder / "in" / "b.jsonl").write_text(content, "utf-8")
    os.utime(folder / "in" / "b.jsonl", (1, 1))
    settled = FileHashes(Storage(str(folder / "out")), "later").settle(listed(folder), versions(corpus))
    assert settled.same == ()
    assert settled.changed["b.jsonl"].startswith(reason)


def test_a_file_that_was_never_hashed_counts_as_changed(folder: Path) -> None:
    corpus = listed(folder)
    os.utime(folder / "in" / "b.jsonl", (1, 1))
    settled = FileHashes(Storage(str(folder / "out")), "later").settle(listed(folder), versions(corpus))
    assert "was not hashed" in settled.changed["b.jsonl"]


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(folder: Path) -> None:
    corpus = listed(folder)
    (folder / "in" / "b.jsonl").write_text('{"text": "다른 것"}\n', "utf-8")
    hashed(folder, corpus)
    known = FileHashes(Storage(str(folder / "out")), "later")
    assert [known.has(file) for file in corpus.files] == [name.name != "b.jsonl" for name in corpus.files]


def test_a_broken_file_of_hashes_costs_no_more_than_a_missing_one(folder: Path) -> None:
    corpus = listed(folder)
    hashed(folder, corpus)
    (path,) = (folder / "out" / HASHES_FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert not FileHashes(Storage(str(folder / "out")), "later").has(corpus.files[0])
