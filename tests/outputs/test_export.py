"""``kosbert-ray export``: what other tools read of it is what the output holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday

from kosbert_ray.cli import main
from kosbert_ray.outputs.export.base import Export, Source
from kosbert_ray.outputs.export.table import EXPORTERS
from kosbert_ray.storage import Storage

SENTENCES = everyday()
JOB = ["--model", TINY, "--keep", "id,text", "--set", "slice.max_rows=100", "--set", "max_rejected=5"]
TYPES = ["--set", "output.dtype=float32,ubinary", "--set", "on_bad_row=null_vector"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export-in")
    texts = [*SENTENCES[:150], None, *SENTENCES[150:200]]
    pq.write_table(pa.table({"id": range(201), "text": texts}), folder / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def output(cli, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "out"
    cli("embed", source, target, *JOB, *TYPES)
    return target


def read(output: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(output.glob("*.parquet"))]).drop_nulls("embedding")


def test_npy_files_stand_beside_their_rows(cli, output: Path, tmp_path: Path) -> None:
    done = cli("export", output, tmp_path / "npy")
    assert done.stdout == f"exported: 200 rows to {tmp_path / 'npy'}\n"
    vectors = sorted((tmp_path / "npy" / "text_emb").iterdir())
    metadata = sorted((tmp_path / "npy" / "metadata").iterdir())
    assert [path.stem for path in vectors] == [path.stem for path in metadata] and len(vectors) == 3
    matrix = np.concatenate([np.load(path) for path in vectors])
    rows = pl.concat([pl.read_parquet(path) for path in metadata])
    expected = read(output)
    assert matrix.dtype == np.float32 and np.array_equal(matrix, np.array(expected["embedding"].to_list(), np.float32))
    assert rows["id"].to_list() == expected["id"].to_list() == [*range(150), *range(151, 201)]
    index = faiss.IndexFlatL2(matrix.shape[1])
    index.add(matrix)
    assert rows["text"][int(index.search(matrix[7:8], 1)[1][0, 0])] == SENTENCES[7]
    where = rows.filter(pl.col("id") == 170).row(0, named=True)
    assert pl.read_parquet(output / where["shard"])["id"][where["row"]] == 170
    said = json.loads((tmp_path / "npy" / "export.json").read_text("utf-8"))
    assert (said["dtype"], said["dimension"], said["model"]) == ("float32", 128, TINY)


def test_another_column_is_exported_as_it_is_stored(cli, output: Path, tmp_path: Path) -> None:
    cli("export", output, tmp_path, "--column", "embedding_ubinary")
    matrix = np.concatenate([np.load(path) for path in sorted((tmp_path / "text_emb").iterdir())])
    assert matrix.dtype == np.uint8 and matrix.tolist() == read(output)["embedding_ubinary"].to_list()
    index = faiss.IndexBinaryFlat(8 * matrix.shape[1])
    index.add(matrix)
    assert index.search(matrix[:1], 1)[0][0, 0] == 0


@pytest.mark.slow
def test_a_grown_output_is_exported_by_what_is_new(cli, output: Path, source: Path, tmp_path: Path) -> None:
    grown, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, grown)
    shutil.copytree(output, out)
    cli("export", out, tmp_path / "npy")
    pq.write_table(pa.table({"id": range(300, 350), "text": SENTENCES[300:350]}), grown / "b.parquet")
    pq.write_table(pa.table({"id": range(10), "text": SENTENCES[:10]}), grown / "a.parquet")
    cli("embed", grown, out, *JOB, *TYPES)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "npy").rglob("*.npy")}
    assert "exported: 60 rows" in cli("export", out, tmp_path / "npy").stdout
    files = {*(tmp_path / "npy").rglob("*.npy")}
    assert len(files) == 2 and not files & {*first}
    again = cli("export", out, tmp_path / "npy").stdout
    assert again.endswith(", 2 files were already there\n")


@pytest.mark.slow
def test_it_goes_from_store_to_store(cli, output: Path, s3) -> None:
    files = s3.filesystem()
    files.mkdir("export")
    files.put(str(output), "export/out", recursive=True)
    cli("export", "s3://export/out", "s3://export/npy", env=s3.env)
    assert len(files.ls("export/npy/text_emb")) == 3


def test_what_cannot_be_exported_is_said(told, output: Path, tmp_path: Path) -> None:
    assert "its columns of vectors are embedding, embedding_ubinary" in told(
        "export", output, tmp_path / "a", "--column", "embedding_int8", code=1
    )
    assert "holds the output itself" in told("export", output, output, code=2)
    part = tmp_path / "part"
    shutil.copytree(output, part)
    (part / "_SUCCESS").unlink()
    assert "not complete" in told("export", part, tmp_path / "b", code=1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "export.json").write_text("{}x")
    assert "cannot be read" in told("export", output, tmp_path / "c", code=1)


def test_a_destination_is_one_entry_in_the_table(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def jsonl(source: Source, address: str) -> Export:
        rows = source.output.to_arrow(["id"]).to_pylist()
        target = Storage(address)
        target.write_atomic("rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
        return Export(target.address, len(rows))

    monkeypatch.setitem(EXPORTERS, "jsonl", lambda: jsonl)
    assert main(["export", str(output), str(tmp_path / "out"), "--format", "jsonl"]) == 0
    assert capsys.readouterr().out == f"exported: 201 rows to {tmp_path / 'out'}\n"
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(201))


def test_many_small_shards_become_few_large_files(cli, output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "큰 파일"
    sizes = [path.stat().st_size for path in sorted(output.glob("*.parquet"))]
    done = cli("export", output, folder, "--format", "parquet", "--shard-size", str(sizes[0] + sizes[1]))
    assert done.stdout == f"exported: 201 rows in 2 files to {folder}\n"
    assert [path.name for path in sorted(folder.glob("*.parquet"))] == ["part-00000.parquet", "part-00001.parquet"]
    expected = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("*.parquet")))
    found = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
    assert found.replace_schema_metadata(None).equals(expected.replace_schema_metadata(None))
    assert pl.read_parquet(folder / "*.parquet").height == 201
    footer = pq.read_metadata(folder / "part-00000.parquet").metadata
    assert json.loads(footer[b"kosbert_ray.vectors"])["embedding"]["dtype"] == "float32"
    assert len(json.loads(footer[b"kosbert_ray.shards"])) == 2

    before = (folder / "part-00000.parquet").stat().st_mtime_ns
    (folder / "part-00001.parquet").write_bytes(b"broken")
    again = cli("export", output, folder, "--format", "parquet", "--shard-size", str(sizes[0] + sizes[1])).stdout
    assert "1 file was already there" in again
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == before
    assert pl.read_parquet(folder / "*.parquet").height == 201
    assert cli("export", output, folder, "--format", "parquet").stdout.startswith("exported: 201 rows in 1 file to ")
    assert [path.name for path in sorted(folder.glob("*.parquet"))] == ["part-00000.parquet"]


def test_a_large_file_is_made_of_sound_shards_only(cli, output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    path = sorted(copy.glob("*.parquet"))[1]
    table = pq.read_table(path)
    vectors = table["embedding"].combine_chunks()
    other = pa.concat_arrays([vectors.slice(1), vectors.slice(0, 1)])
    pq.write_table(table.set_column(table.column_names.index("embedding"), table.schema.field("embedding"), other), path)
    done = cli("export", copy, tmp_path / "large", "--format", "parquet", code=1)
    assert f"{path.name}: not as it was written; see kosbert-ray verify" in done.stderr
    assert json.loads((tmp_path / "large" / "_export.json").read_text("utf-8"))["complete"] is False
    assert (
        "--shard-size: for --format parquet only"
        in cli("export", output, tmp_path / "x", "--shard-size", "1MB", code=2).stderr
    )
    assert (
        "is no size" in cli("export", output, tmp_path / "x", "--format", "parquet", "--shard-size", "big", code=2).stderr
    )


def test_a_destination_in_an_output_or_in_another_export_is_refused(cli, told, output: Path, tmp_path: Path) -> None:
    assert f"is inside the output {output}" in told("export", output, output / "sub", "--format", "parquet", code=2)
    source = tmp_path / "one.jsonl"
    source.write_text('{"text": "비가 온다."}')
    message = told("embed", source, output / "sub" / "deeper", "--model", TINY, code=2)
    assert f"{output / 'sub' / 'deeper'}: is inside the output {output}" in message
    assert not (output / "sub").exists()
    cli("export", output, tmp_path / "large", "--format", "parquet")
    cli("embed", source, tmp_path / "other", "--model", TINY)
    for name in ("npy", "parquet"):
        assert "holds another export" in told("export", tmp_path / "other", tmp_path / "large", "--format", name, code=2)
    message = told("export", output, tmp_path / "x", "--format", "parquet", "--shard-size", "0", code=2)
    assert "--shard-size: is 0" in message
