"""verify finds each thing that can be wrong with an output when it is planted, and nothing in a right one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from receipts import RECEIPT

from kosbert_ray.outputs.shard_check import check_cover
from kosbert_ray.shards.receipt import Receipt

SETTINGS = ["--model", TINY, "--keep", "id", "--no-text", "--set", "encoder.actors=1"]


def put(folder: Path, name: str, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)), "utf-8")


@pytest.fixture(scope="module")
def made(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs of one corpus, by jobs that differ in what they cut off."""
    folder = tmp_path_factory.mktemp("verify")
    put(folder / "in", "a.jsonl", [*everyday()[:90], ""])
    put(folder / "in", "b.jsonl", everyday()[90:180])
    (folder / "in" / "empty.jsonl").write_text("\n\n")
    settings = [*SETTINGS, "--set", "slice.max_rows=10"]
    cli("embed", folder / "in", folder / "out", *settings)
    cli("embed", folder / "in", folder / "other", *settings, "--set", "model.max_seq_length=8")
    return folder


@pytest.fixture
def planted(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.parquet"))


def test_a_right_output_is_verified_to_the_last_row(cli, made: Path) -> None:
    done = cli("verify", made / "out", "--input", made / "in", "--sample", "20")
    assert len(done.stdout.splitlines()) == 1
    assert (
        "180 rows in 19 shards, 1 rejected, all 181 rows of the input accounted for, 20 rows embedded again" in done.stdout
    )
    assert "verified" in cli("verify", made / "out").stdout


@pytest.mark.faults
def test_a_large_output_is_read_by_ray(cli, made: Path) -> None:
    done = cli("verify", made / "out", "--input", made / "in", "--set", "ray.address=local")
    assert "all 181 rows of the input accounted for" in done.stdout


def deleted(out: Path, name: str) -> str:
    (out / name).unlink()
    return f"{name}: missing, with 10 rows"


def truncated(out: Path, name: str) -> str:
    (out / name).write_bytes((out / name).read_bytes()[:-100])
    return f"{name}: not an intact shard of kosbert-ray"


def another_models(out: Path, name: str) -> str:
    theirs = out.parent / "other"
    shutil.copy(theirs / names(theirs)[0], out / name)
    return f"{name}: made by another job"


def swapped(out: Path, name: str) -> str:
    other = names(out)[-1]
    (out / name).rename(out / "x")
    (out / other).rename(out / name)
    (out / "x").rename(out / other)
    return f"{name}: holds another shard's content, that of {other}"


def flipped_byte(out: Path, name: str) -> str:
    content = bytearray((out / name).read_bytes())
    column = pq.read_metadata(out / name).row_group(0).column(1)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    (out / name).write_bytes(content)
    return f"{name}: its pages are damaged"


def flipped_footer(out: Path, name: str) -> str:
    content = (out / name).read_bytes()
    assert content.count(b'"distinct": 10') == 1
    (out / name).write_bytes(content.replace(b'"distinct": 10', b'"distinct": 11'))
    return f"{name}: its footer is not its receipt's (distinct differ)"


def rewrite(path: Path, spoil: Callable[[np.ndarray], None]) -> None:
    """Vectors changed by another writer, which keeps the footer."""
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    spoil(vectors)
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    field = table.schema.field("embedding")
    pq.write_table(table.set_column(1, field, column.cast(field.type)), path)


def other_vectors(out: Path, name: str) -> str:
    rewrite(out / name, lambda vectors: vectors.__setitem__(0, vectors[0] * 1.0001))
    return f"{name}: its vectors are not those that were written (XXH128)"


def not_a_number(out: Path, name: str) -> str:
    rewrite(out / name, lambda vectors: vectors.__setitem__((5, 7), np.nan))
    return f"{name}: 1 vector holds NaN or Inf"


def lost_rows(out: Path, name: str) -> str:
    pq.write_table(pq.read_table(out / name).slice(1), out / name)
    return f"{name}: has 9 rows instead of 10"


def lost_column(out: Path, name: str) -> str:
    pq.write_table(pq.read_table(out / name).drop_columns(["id"]), out / name)
    return f"{name}: its columns are (embedding: list<item: float>) instead of (id: int64, embedding: list<item: float>)"


def lost_rejected(out: Path, name: str) -> str:
    (found,) = (out / "_kosbert" / "rejected").iterdir()
    found.unlink()
    return f"rejected/{found.name}: missing, with the 1 rejected row"


def stranger(out: Path, name: str) -> str:
    shutil.copy(out / name, out / "part-0.parquet")
    return f"part-0.parquet: holds another shard's content, that of {name}"


def foreign(out: Path, name: str) -> str:
    pq.write_table(pa.table({"a": [1]}), out / "zz.parquet")
    return "zz.parquet: written by another program"


def unfinished(out: Path) -> str:
    (out / "_SUCCESS").unlink()
    return "no _SUCCESS: the output is incomplete"


PLANTS = (
    *(deleted, truncated, another_models, swapped, flipped_byte, flipped_footer, other_vectors, not_a_number, lost_rows),
    *(lost_column, lost_rejected, stranger, foreign),
)


def test_all_that_is_planted_is_found(cli, planted: Path) -> None:
    out = planted / "out"
    before = names(out)
    expected = [plant(out, name) for plant, name in zip(PLANTS, before, strict=False)]
    done = cli("verify", out, code=1)
    for problem in expected:
        assert problem in done.stderr
    assert not any(name in done.stderr for name in before[len(PLANTS) : -1]), "the others are sound"
    assert "problems; delete the broken files and run the same embed command again" in done.stderr.splitlines()[-1]
    assert "move files that are not this job's out of the folder" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_an_output_that_is_not_complete_is_not_verified(cli, planted: Path) -> None:
    expected = unfinished(planted / "out")
    done = cli("verify", planted / "out", code=1)
    assert expected in done.stderr
    assert done.stderr.rstrip().endswith("1 problem; run the same embed command (without --limit) again to complete it")


def test_a_lost_manifest_is_told_again_and_made_again(cli, planted: Path) -> None:
    (found,) = (planted / "out" / "_kosbert" / "manifests").glob("*.parquet")
    found.unlink()
    assert f"{found.name}: cannot be read" in cli("verify", planted / "out").stderr
    cli("embed", planted / "in", planted / "out", *SETTINGS, "--set", "slice.max_rows=10")
    assert cli("verify", planted / "out").stderr == ""


def test_a_wrong_input_is_told_from_a_broken_output(cli, planted: Path) -> None:
    put(planted / "elsewhere", "z.jsonl", everyday()[:5])
    done = cli("verify", planted / "out", "--input", planted / "elsewhere", code=1)
    assert done.stderr.rstrip().endswith("1 problem; check that --input is what this output was made of")
    (planted / "columns").mkdir()
    (planted / "columns" / "a.jsonl").write_text('{"title": "no text"}\n')
    done = cli("verify", planted / "out", "--input", planted / "columns", code=1)
    assert done.stderr.rstrip().endswith("1 problem; check that --input is what this output was made of")


@pytest.mark.slow
def test_a_stale_shard_of_a_changed_input_and_what_is_missing_of_the_new_one_are_found(cli, planted: Path) -> None:
    put(planted / "in", "b.jsonl", everyday()[300:350])
    put(planted / "in", "c.jsonl", everyday()[:10])
    done = cli("verify", planted / "out", "--input", planted / "in", code=1)
    stale = [name for name in names(planted / "out") if name.startswith("b.")]
    assert all(f"{name}: stale, of b.jsonl as it was before it changed" in done.stderr for name in stale)
    assert "b.jsonl, fragment 0: 5 of 5 slices missing" in done.stderr
    assert "c.jsonl, fragment 0: 1 of 1 slice missing" in done.stderr
    cli("embed", planted / "in", planted / "out", *SETTINGS, "--set", "slice.max_rows=10")
    assert "all 151 rows" in cli("verify", planted / "out", "--input", planted / "in").stdout


def test_vectors_of_other_texts_are_found_by_a_sample(cli, planted: Path) -> None:
    """A shard that is consistent in itself, but whose vectors a liar has made."""
    out = planted / "out"
    name = names(out)[0]
    path = out / name
    table = pq.read_table(path)
    vectors = table["embedding"].combine_chunks()
    rolled = pa.chunked_array([pa.concat_arrays([vectors.slice(1), vectors.slice(0, 1)])])
    footer = json.loads(table.schema.metadata[b"kosbert_ray"])
    from kosbert_ray.shards.shard import checksum

    footer["embedding_xxh128"] = checksum(*rolled.chunks)
    lied = table.set_column(table.column_names.index("embedding"), table.schema.field("embedding"), rolled)
    pq.write_table(lied.replace_schema_metadata(table.schema.metadata | {b"kosbert_ray": json.dumps(footer)}), path)
    shutil.rmtree(out / "_kosbert" / "receipts")
    (manifest,) = (out / "_kosbert" / "manifests").glob("*.parquet")
    rows = pq.read_table(manifest)
    told = [
        row | {"embedding_xxh128": footer["embedding_xxh128"]} if row["shard"] == name else row for row in rows.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(told, rows.schema), manifest)
    cli("verify", out)
    done = cli("verify", out, "--input", planted / "in", "--sample", "1000", code=1)
    assert f"{name}: 10 of 10 sampled vectors are not the model's" in done.stderr
    assert "give the input with --input" in cli("verify", out, "--sample", "3", code=1).stderr


def receipt(index: int, last: bool = False, shard: str = "") -> Receipt:
    values = {"shard": shard or f"a.{index}", "slice_index": index, "last": last}
    return replace(RECEIPT, **values)


@pytest.mark.parametrize(
    ("receipts", "problem"),
    [
        ([receipt(0), receipt(1, True)], None),
        ([receipt(0), receipt(2, True)], "slice 0-1 is missing"),
        ([receipt(0), receipt(1)], "the slices after 0-1 are missing"),
        ([receipt(0, True), receipt(0, True, "b.0")], "b.0: the same slice as a.0"),
    ],
)
def test_slices_that_are_missing_or_there_twice_are_found_without_the_input(receipts, problem: str | None) -> None:
    found = check_cover(receipts)
    assert (problem in found[0]) if problem else found == []
