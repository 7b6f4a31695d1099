"""Inputs as people have them: datasets of Hugging Face, several text columns, partitioned folders, zipped files."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from hub import Hub
from rows import good, notices, reasons, rows

from kosbert_ray.corpus.columns import path_keys
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.corpus.text import RowText
from kosbert_ray.errors import InputError, UsageError

TEXTS = everyday()[:60]


def test_a_dataset_saved_to_disk_is_read_as_it_is(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": [*TEXTS, None, " "], "id": [*range(62)]})
    datasets.DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(
        str(tmp_path), num_shards={"train": 3, "test": 1}
    )
    found = rows(tmp_path, keep=["id"], limits=Limits(7))
    assert good(found) == TEXTS[:5] + TEXTS and good(found, "id") == [*range(5), *range(60)]
    assert reasons(found) == ["null text", "empty text"]


def test_arrow_files_are_read_too_and_broken_ones_said(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "id": range(60)})
    pa.feather.write_feather(table, tmp_path / "a.arrow", chunksize=9)
    assert good(rows(tmp_path, keep=["id"], limits=Limits(11))) == TEXTS
    content = (tmp_path / "a.arrow").read_bytes()
    for broken in (content[: len(content) // 2], b"not arrow at all"):
        (tmp_path / "a.arrow").write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.arrow: (broken Arrow|.* is no)"):
            rows(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_template_joins_columns(tmp_path: Path, kind: str) -> None:
    values = {
        "title": ["제목", None, None, "{끝}"],
        "body": ["본문", "글", None, " "],
        "year": ["2026", "2025", None, None],
    }
    if kind == "parquet":
        pq.write_table(pa.table(values), tmp_path / "a.parquet")
    elif kind == "jsonl":
        records = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    else:
        pl.DataFrame(values).write_csv(tmp_path / "a.csv", null_value="")
    found = rows(tmp_path, "{title}\\n{body} ({year}) {{}}")
    expected = ["제목\n본문 (2026) {}", "\n글 (2025) {}", None, "{끝}\n  () {}"]
    if kind == "csv":  # which knows no null
        expected[2] = "\n () {}"
    assert [row["__text"] for row in found] == expected
    assert reasons(found) == ([] if kind == "csv" else ["null text"])


def test_numbers_go_into_a_template_and_lists_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"t": "글", "n": 3}\n{"t": "글", "n": [3]}\n{"t": "글", "n": true}')
    found = rows(tmp_path, "{t} {n}")
    assert good(found) == ["글 3"]
    assert reasons(found) == ["column 'n' is list, not a string", "column 'n' is bool, not a string"]
    pq.write_table(pa.table({"t": ["글"], "n": [3], "l": [[1]]}), tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").unlink()
    assert good(rows(tmp_path, "{t} {n}")) == ["글 3"]
    with pytest.raises(InputError, match="column 'l' is list"):
        rows(tmp_path, "{t} {l}")
    with pytest.raises(InputError, match=r"no column 'x'; it has 't', 'n', 'l' \(set input\.text\)"):
        rows(tmp_path, "{t} {x}")


@pytest.mark.parametrize("template", ["{", "{a", "}", "{}", "{a!r}", "{a:>9}", "{{}}"])
def test_what_is_no_template_is_said(template: str) -> None:
    with pytest.raises(UsageError, match="input.text: "):
        RowText(template).columns  # noqa: B018


def test_texts_are_made_alike_if_asked(tmp_path: Path) -> None:
    text = unicodedata.normalize("NFD", "한글  &amp;\u3000&lt;b&gt;\n\t끝\u00a0")
    pq.write_table(pa.table({"text": [text, "&nbsp;", "가"]}), tmp_path / "a.parquet")

    def normalized(*how: str) -> list[str | None]:
        _, columns = inspect(list_corpus(str(tmp_path)), RowText("text", how), [], LineOptions())
        return columns.source.normalized(pa.array([text, "&nbsp;", None], pa.large_string())).to_pylist()

    assert normalized() == [text, "&nbsp;", None]
    assert normalized("nfc") == [unicodedata.normalize("NFC", text), "&nbsp;", None]
    assert normalized("html", "nfc", "whitespace") == ["한글 & <b> 끝", "", None]
    found = rows(tmp_path, RowText("text", ("html", "whitespace")))
    assert reasons(found) == ["empty text"] and len(good(found)) == 2


def test_keys_in_the_path_are_columns(tmp_path: Path) -> None:
    for year in ("2025", "2026"):
        for lang in ("ko", "__HIVE_DEFAULT_PARTITION__", "a%2Fb"):
            folder = tmp_path / f"year={year}" / f"lang={lang}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"text": [f"{year} {lang}"], "id": [1]}), folder / "a.parquet")
    found = rows(tmp_path, keep=["lang", "id", "year"])
    assert [*found[0]][-3:] == ["lang", "id", "year"]
    assert {(row["year"], row["lang"]) for row in found} == {(y, n) for y in ("2025", "2026") for n in ("ko", None, "a/b")}
    assert path_keys("s3://b/x=1/y=%EA%B0%80/a=b.txt") == {"x": "1", "y": "가"}
    (tmp_path / "year=2026" / "b.parquet").write_bytes((folder / "a.parquet").read_bytes())
    assert [row["lang"] for row in rows(tmp_path, keep=["lang"])].count(None) == 3
    assert "column 'lang' is null in 1 file without lang= in the path (year=2026/b.parquet)" in notices(
        tmp_path, keep=["lang"]
    )


def test_a_column_of_the_file_is_not_taken_from_the_path(tmp_path: Path) -> None:
    (tmp_path / "id=7").mkdir()
    (tmp_path / "id=7" / "a.jsonl").write_text('{"text": "글", "id": 1}')
    assert rows(tmp_path, keep=["id"])[0]["id"] == 1


def test_a_zipped_file_is_read_if_it_is_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/a.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS))
    assert good(rows(tmp_path, limits=Limits(7))) == TEXTS
    content = (tmp_path / "a.jsonl.zip").read_bytes()
    (tmp_path / "a.jsonl.zip").write_bytes(content[:200] + b"xxxx" + content[204:])
    with pytest.raises(InputError, match="corrupt or truncated zip data"):
        rows(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr("a", "")
        archive.writestr("b", "")
    with pytest.raises(InputError, match="contains 2 files"):
        rows(tmp_path)


def test_a_dataset_of_the_hub_is_embedded_by_its_name(cli, tmp_path: Path) -> None:
    data = tmp_path / "hub" / "team" / "everyday" / "data" / "lang=ko"
    data.mkdir(parents=True)
    pq.write_table(pa.table({"title": TEXTS[:20], "body": TEXTS[20:40]}), data / "train-00000-of-00001.parquet")
    (data.parent.parent / "README.md").write_text("---\n---\n")
    hub = Hub(tmp_path / "hub")
    try:
        args = [
            "--model",
            TINY,
            "--text",
            "{title} {body}",
            "--keep",
            "title,lang",
            "--set",
            "input.normalize=nfc,whitespace",
        ]
        done = cli("embed", "hub://team/everyday", tmp_path / "out", *args, env=hub.env)
        assert "done: 20 rows in 1 shard" in done.stdout
        checked = cli("verify", tmp_path / "out", "--input", "hub://team/everyday", env=hub.env)
        assert "20 rows" in checked.stdout
        missing = cli("embed", "hub://team/nothing", tmp_path / "out2", *args, env=hub.env, code=1)
        assert "error: hf://datasets/team/nothing: no such" in missing.stderr
    finally:
        hub.close()
    found = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert found["title"].to_list() == TEXTS[:20] and set(found["lang"]) == {"ko"}
