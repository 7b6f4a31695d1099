"""INPUT as a file, a folder, a glob."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

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
    found = list_corpus(str(corpus))
    assert found.ignored == ("notes.pdf",) and found.ignored_endings == {".pdf": 1}
    assert found.ignored_line().endswith("skipped 1 file with an unsupported extension (1 .pdf: notes.pdf)")


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
    with pytest.raises(InputError, match="the folder contains no files"):
        list_corpus(str(corpus / "empty"))
    with pytest.raises(InputError, match="no file matches"):
        list_corpus(str(corpus / "*.tsv"))
    with pytest.raises(InputError, match=r"notes\.pdf.*input\.format"):
        list_corpus(str(corpus / "notes.pdf"))


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("글")


@pytest.mark.parametrize("name", ["[라벨]뉴스", "a?b", "x*"])
def test_an_existing_path_is_taken_literally_before_it_is_a_pattern(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name}/[1].txt", "lab/b.txt")
    assert names(tmp_path / name) == ["[1].txt"]
    assert names(tmp_path / name / "[1].txt") == ["[1].txt"]
    assert names(tmp_path / "l[ab]b" / "*.txt") == ["lab/b.txt"]


def test_a_link_back_to_a_folder_above_is_skipped_with_a_notice(tmp_path: Path) -> None:
    put(tmp_path, "in/a.txt", "in/sub/b.txt")
    (tmp_path / "in" / "latest").symlink_to("../in")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    found = list_corpus(str(tmp_path / "in"))
    assert [file.name for file in found.files] == ["a.txt", "sub/b.txt"]
    assert "skipped latest: a symbolic link to one of its parent folders" in found.notices


def test_two_names_of_one_file_are_read_once_under_its_own_name(tmp_path: Path) -> None:
    put(tmp_path, "z/2026/a.txt", "z/b.txt")
    (tmp_path / "latest").symlink_to("z/2026")
    (tmp_path / "z" / "c.txt").hardlink_to(tmp_path / "z" / "b.txt")
    found = list_corpus(str(tmp_path))
    assert [file.name for file in found.files] == ["z/2026/a.txt", "z/b.txt"]
    assert found.notices == ("skipped 2 links to files that are read anyway (latest/a.txt is z/2026/a.txt)",)
    assert names(tmp_path / "latest" / "*.txt") == ["a.txt"], "a pattern may name a link"
    assert names(tmp_path / "lat*" / "*.txt") == ["latest/a.txt"]


def test_a_link_to_a_file_of_another_ending_is_the_shard(tmp_path: Path) -> None:
    put(tmp_path, "blobs/0a1b")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "a.txt").symlink_to("../blobs/0a1b")
    assert names(tmp_path) == ["snapshots/a.txt"], "as in the hub's cache"


def test_links_among_many_folders_do_not_multiply(tmp_path: Path) -> None:
    for one in range(12):
        put(tmp_path, f"{one:02d}/a.txt")
        for other in range(12):
            (tmp_path / f"{one:02d}" / f"to{other}").symlink_to(f"../{other:02d}")
    assert len(names(tmp_path)) == 12


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "b.txt")
    os.mkfifo(tmp_path / "a.txt")
    found = list_corpus(str(tmp_path))
    assert [file.name for file in found.files] == ["b.txt"]
    assert "skipped a.txt: not a regular file" in found.notices[0]
    with pytest.raises(InputError, match="neither a regular file nor a folder"):
        list_corpus(str(tmp_path / "a.txt"))


def test_a_name_that_is_not_utf_8_is_escaped_and_can_be_opened(tmp_path: Path) -> None:
    raw = "한글.txt".encode("cp949")
    with open(os.path.join(os.fsencode(tmp_path), raw), "wb") as file:
        file.write(b"x")
    found = list_corpus(str(tmp_path))
    (name,) = [file.name for file in found.files]
    assert name.encode() and name.endswith(".txt")
    with found.storage.open(name) as file:
        assert file.read() == b"x"
    assert found.storage.entry(name).version == found.files[0].version


def test_an_unreadable_subfolder_fails_by_name(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, "a.txt", "b/c.txt")
    listed = os.scandir

    def scandir(path: str):  # the tests may run as root, whom no rights stop
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    put(tmp_path, "lost+found/b/x.txt", ".cache/b/x.txt")
    assert not list_corpus(str(tmp_path / "*.txt")).failed
    assert [file.name for file in list_corpus(str(tmp_path / "**" / "*.txt")).failed] == ["b"]
    found = list_corpus(str(tmp_path))
    assert len(found.failed) == 1, "hidden folders do not count"
    assert [file.name for file in found.files] == ["a.txt"]
    assert found.failed[0].name == "b"
    assert found.failed[0].reason.endswith("/b: cannot be listed (Permission denied); check the permissions of the folder")


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        ("metadata/00001-9f.metadata.json", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
    ],
)
@pytest.mark.parametrize("folder", ["", "sub/table/"])
def test_tables_with_a_log_of_their_own_are_refused_unless_a_glob_names_the_files(
    tmp_path: Path, mark: str, what: str, folder: str
) -> None:
    put(tmp_path, f"{folder}data/part-0.parquet", folder + mark)
    with pytest.raises(InputError, match=f"this is {what}; its folder may contain rows that were deleted"):
        list_corpus(str(tmp_path))
    found = list_corpus(str(tmp_path / "**" / "*.parquet"))
    assert len(found.files) == 1 and what in found.notices[0]


def test_outputs_below_the_input_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "vec/_kosbert/job.json", "vec/a.00000.parquet", "all/v1/_kosbert/job.json", "all/v1/a.parquet")
    found = list_corpus(str(tmp_path))
    assert [file.name for file in found.files] == ["a.txt"]
    assert "skipped 2 outputs of kosbert-ray (all/v1, vec)" in found.notices[0]
    assert names(tmp_path / "vec") == ["a.00000.parquet"], "an output that is named is an input like another"
    with pytest.raises(InputError, match="no files are left to embed"):
        list_corpus(str(tmp_path / "all"))


def test_caches_beside_a_saved_dataset_are_no_rows_of_it(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["가", "나", "다"]}).save_to_disk(str(tmp_path / "in"))
    load_from_disk(str(tmp_path / "in")).map(lambda row: {"n": len(row["text"])}).shuffle(seed=1)
    assert len([*(tmp_path / "in").glob("*.arrow")]) > 1
    found = list_corpus(str(tmp_path / "in"))
    assert [file.name for file in found.files] == ["data-00000-of-00001.arrow"]
    assert "skipped 1 cache file of Hugging Face datasets" in found.notices[0]
    put(tmp_path, "hub/dataset_info.json", "hub/x-train.arrow", "hub/cache-01.arrow")
    assert names(tmp_path / "hub") == ["x-train.arrow"]


def test_an_indices_file_that_chooses_the_rows_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "data.arrow")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": [{}]}')
    with pytest.raises(InputError, match="flatten_indices"):
        list_corpus(str(tmp_path))


def test_what_is_left_out_is_named_by_its_endings(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.json", "c.json", "d.bz2", "README")
    found = list_corpus(str(tmp_path))
    assert found.ignored_endings == {".json": 2, ".bz2": 1, "no ending": 1}
    line = found.ignored_line()
    assert (
        "skipped 4 files with an unsupported extension (2 .json, 1 no ending, 1 .bz2: README, b.json, c.json and 1 more)"
        in line
    )
    assert "rename JSON lines to .jsonl" in line


def test_json_files_are_json_lines_where_nothing_else_is_a_text_shard(tmp_path: Path) -> None:
    put(tmp_path, "part-0.json", "part-1.json.gz", "_SUCCESS")
    assert [(file.name, file.format) for file in list_corpus(str(tmp_path)).files] == [
        ("part-0.json", "jsonl"),
        ("part-1.json.gz", "jsonl"),
    ]


@pytest.mark.parametrize("format", [None, "parquet"])
def test_a_compressed_parquet_file_fails_by_name(tmp_path: Path, format: str | None) -> None:
    put(tmp_path, "a.parquet", "b.parquet.gz")
    found = list_corpus(str(tmp_path), format=format)
    assert [file.name for file in found.files] == ["a.parquet"]
    assert found.failed[0].name == "b.parquet.gz" and "decompress it first" in found.failed[0].reason
    with pytest.raises(InputError, match=r"b\.parquet\.gz: a compressed parquet file"):
        list_corpus(str(tmp_path / "b.parquet.gz"))
