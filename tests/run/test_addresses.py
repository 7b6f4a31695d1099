"""``--keep-address``: each row of the output names its place in the input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from conftest import TINY

from kosbert_ray import Output


def found_in(folder: Path, row: dict) -> str | None:
    """The text at an address."""
    path = folder / row["file"]
    if path.suffix == ".parquet":
        return pq.read_table(path)["text"][row["row"]].as_py()
    if row["byte_offset"] is not None:
        return json.loads(path.read_bytes()[row["byte_offset"] :].partition(b"\n")[0])["text"]
    return json.loads(gzip.decompress(path.read_bytes()).splitlines()[row["row"]])["text"]


def test_the_text_at_each_address_is_that_of_the_row(cli, tmp_path: Path) -> None:
    folder, target = tmp_path / "in", tmp_path / "out"
    (folder / "하나").mkdir(parents=True)
    texts = [None if number in (3, 40) else f"문장 {number}" for number in range(60)]
    pq.write_table(pa.table({"text": texts[:20]}), folder / "하나" / "a.parquet", row_group_size=7)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (folder / "b.jsonl").write_text("".join(lines[20:45]), "utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[45:]).encode()))
    embed = ["embed", folder, target, "--model", TINY, "--keep-address", "--set", "slice.max_rows=6"]
    cli(*embed, "--set", "max_rejected=5")
    rows = ds.dataset(target, format="parquet").to_table().drop_columns("embedding").to_pylist()
    assert list(rows[0]) == ["text", "file", "row", "byte_offset"]
    assert len(rows) == 58
    assert all(found_in(folder, row) == row["text"] for row in rows)
    assert len({(row["file"], row["row"], row["byte_offset"]) for row in rows}) == 58
    assert Output.open(target).columns == ("text", "file", "row", "byte_offset")
    assert not Output.open(target).verify(input=folder, sample=10).problems
    assert cli(*embed, "--set", "max_rejected=5").stdout.startswith("done: 58 rows")
    assert "output.address" not in cli("plan", folder, "--model", TINY, "--keep-address").stderr


def test_chunks_and_rows_without_a_vector_have_addresses(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "out"
    texts = ["짧다.", "", " ".join(f"긴 문장 {number}번이다." for number in range(60))]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    options = ["--set", "long_text=chunk", "--set", "chunk.size=32", "--set", "on_bad_row=null_vector"]
    cli("embed", source, target, "--model", TINY, "--keep-address", *options, "--set", "max_rejected=5")
    rows = ds.dataset(target, format="parquet").to_table().to_pylist()
    assert len(rows) > 4
    assert rows[1]["embedding"] is None
    for row in rows:
        text = found_in(tmp_path, row) or ""
        assert row["embedding"] is None or text[row["chunk_start"] : row["chunk_end"]] == row["text"]


def test_a_kept_column_cannot_have_the_name_of_an_address(cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "가", "row": 1}\n', "utf-8")
    arguments = ["embed", tmp_path / "a.jsonl", tmp_path / "out", "--model", TINY, "--keep", "row"]
    assert "output.address: writes a column 'row' of its own" in cli(*arguments, "--keep-address", code=2).stderr
    cli(*arguments)
    message = cli("embed", tmp_path / "a.jsonl", tmp_path / "out", "--keep-address", code=2).stderr
    assert "output.address: writes a column 'row' of its own" in message
