"""Columns and their types are settled before anything runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from kosbert_ray.corpus import schema
from kosbert_ray.corpus.formats.parquet import FOOTER_BYTES
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.row_table import POSITION, TEXT
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.errors import InputError
from kosbert_ray.storage import Storage, StorageOptions


def look(folder: Path, text: str = "text", keep=()):
    return inspect(list_corpus(str(folder)), text, keep, LineOptions())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_arrow_string_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["가", None, "나"]).cast(kind), "id": [1, 2, 3]}), tmp_path / "a.parquet")
    corpus, columns = look(tmp_path, keep=["id", "text"])
    reader = FragmentReader(corpus.storage, columns, LineOptions(), Limits())
    ((_, table),) = reader.slices(next(plan(corpus.files, Limits())))
    assert table[TEXT].to_pylist() == ["가", None, "나"]
    assert table["id"].to_pylist() == [1, 2, 3]


def test_parquet_rows_are_read_once_whatever_the_row_groups_and_the_limits(tmp_path: Path) -> None:
    texts = [f"문장 {number} " + "가" * (number % 50) for number in range(1000)]
    for size in (7, 64, 1000):
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=size)
        for limits in (Limits(10), Limits(100), Limits(5000, 700)):
            corpus, columns = look(tmp_path)
            reader = FragmentReader(corpus.storage, columns, LineOptions(), limits)
            tables = [table for fragment in plan(corpus.files, limits) for _, table in reader.slices(fragment)]
            assert [text for table in tables for text in table[TEXT].to_pylist()] == texts
            assert [row for table in tables for row in table[POSITION].to_pylist()] == list(range(1000))


def test_a_committed_slice_is_not_yielded_again(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [str(number) for number in range(100)]}), tmp_path / "a.parquet")
    corpus, columns = look(tmp_path)
    reader = FragmentReader(corpus.storage, columns, LineOptions(), Limits(10))
    (fragment,) = plan(corpus.files, Limits(10))
    assert [piece.index for piece, _ in reader.slices(fragment, {0, 3, 9})] == [1, 2, 4, 5, 6, 7, 8]


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["가"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: no column 'text'; it has 'body', 'id' \(set input\.text\)"):
        look(tmp_path)
    with pytest.raises(InputError, match=r"no column 'title'.*\(set input\.keep\)"):
        look(tmp_path, "body", ["title"])
    with pytest.raises(InputError, match="column 'id' is int64, not a string"):
        look(tmp_path, "id")


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: broken Parquet"):
        look(tmp_path)


def test_footers_in_an_object_store_are_read_from_the_files_ends(s3, tmp_path: Path, monkeypatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    store = s3.filesystem()
    store.mkdir("footers")
    texts = [f"{number} " + "글" * 40 for number in range(3000)]
    table = pa.table({"text": texts})
    pq.write_table(table, tmp_path / "large.parquet", compression="none", use_dictionary=False, row_group_size=1500)
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=3)
    pq.write_table(table.slice(0, 10), tmp_path / "small.parquet")
    for path in tmp_path.iterdir():
        store.put(str(path), f"footers/in/{path.name}")
    assert (tmp_path / "large.parquet").stat().st_size > 2 * FOOTER_BYTES
    assert pq.read_metadata(tmp_path / "many.parquet").serialized_size > FOOTER_BYTES
    corpus, _ = inspect(list_corpus("s3://footers/in"), "text", [], LineOptions())
    assert corpus.files[0].name == "large.parquet"
    assert [len(file.row_groups) for file in corpus.files] == [2, 1000, 1]
    here, _ = look(tmp_path)
    assert [file.row_groups for file in corpus.files] == [file.row_groups for file in here.files]
    store.pipe("footers/in/many.parquet", b"PAR1 nothing PAR1")
    corpus, _ = inspect(list_corpus("s3://footers/in"), "text", [], LineOptions())
    assert [file.name for file in corpus.files] == ["large.parquet", "small.parquet"]
    assert corpus.failed[0].reason.startswith("s3://footers/in/many.parquet: broken Parquet")
    store.pipe("footers/in/empty.jsonl", b"")
    store.pipe("footers/in/[1] 글.jsonl", "\ufeff[]".encode())
    with pytest.raises(InputError, match=r"s3://footers/in/\[1\] 글\.jsonl: a JSON document"):
        inspect(list_corpus("s3://footers/in/[1] 글.jsonl"), "text", [], LineOptions())
    assert len(inspect(list_corpus("s3://footers/in"), "text", [], LineOptions())[0].failed) == 2


def test_many_footers_in_an_object_store_are_read_by_arrow(s3, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(schema, "MANY_FOOTERS", 1)
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    store = s3.filesystem()
    store.mkdir("many")
    for number, name in enumerate(("a", "[1] 글 #2%20+?", "날짜=2026-01-01/b")):
        pq.write_table(pa.table({"text": ["글"] * (number + 1)}), tmp_path / "a.parquet")
        store.put(str(tmp_path / "a.parquet"), f"many/in/{name}.parquet")

    def rows(**options: object) -> list[int]:
        corpus = list_corpus("s3://many/in", StorageOptions(**options))
        return [file.rows for file in inspect(corpus, "text", [], LineOptions())[0].files]

    expected = rows()
    assert sorted(expected) == [1, 2, 3]
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "open", None)
        patched.setattr(Storage, "read_ends", None)
        assert rows() == expected  # neither was used
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "arrow", LocalFileSystem())  # a client that finds nothing
        assert rows() == expected
    with monkeypatch.context() as patched:
        patched.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        patched.setattr(Storage, "open", None)
        assert Storage("s3://many/in").arrow is None
        assert rows() == expected
    assert Storage("s3://many/in", StorageOptions(requester_pays=True)).arrow is None
    assert Storage("s3://many/in", StorageOptions(access_key_id="nobody", secret_access_key="x")).arrow is None
    assert rows(requester_pays=True) == expected


def test_a_file_whose_kept_columns_are_of_another_type_fails_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["가"], "id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["가"], "id": ["x"]}), tmp_path / "b.parquet")
    assert not look(tmp_path)[0].failed
    corpus, columns = look(tmp_path, keep=["id"])
    assert [file.name for file in corpus.files] == ["a.parquet"] and columns.keep.field("id").type == pa.int64()
    (failed,) = corpus.failed
    assert failed.name == "b.parquet"
    assert "b.parquet: column 'id' is string, but in a.parquet it is int64" in failed.reason
    assert "input.types={id: string}" in failed.reason
