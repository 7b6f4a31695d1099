"""Texts are copied to the output as they are in the input, unless the job says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import TINY

from kosbert_ray import Output

ROWS = [
    {"id": 1, "title": "비 &amp; 바람", "body": "비가  온다."},
    {"id": 2, "title": "눈", "body": "눈이 온다.  길이 얼었다."},
    {"id": 3, "title": None, "body": None},
]


def write(folder: Path, kind: str) -> Path:
    folder.mkdir()
    table = pa.Table.from_pylist(ROWS if kind != "csv" else ROWS[:2])  # whose empty values are no nulls
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet")
    elif kind == "csv":
        pc.write_csv(table, folder / "a.csv")
    else:
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return folder


def columns(output: Path) -> dict[str, list[Any]]:
    table = ds.dataset(output, format="parquet").to_table()
    assert table.schema.field("text").type == pa.string() if "text" in table.column_names else True
    return table.drop_columns("embedding").to_pydict()


FILLED = ["비 &amp; 바람\n비가  온다.", "눈\n눈이 온다.  길이 얼었다."]
JOBS = {
    "column": (["--text", "body"], {"text": [row["body"] for row in ROWS[:2]]}),
    "no text": (["--text", "body", "--no-text", "--keep", "id"], {"id": [1, 2]}),
    "template of one column": (
        ["--text", "title: {body}", "--keep", "id"],
        {"id": [1, 2], "text": [ROWS[0]["body"], ROWS[1]["body"]]},
    ),
    "template of several": (["--text", "{title}\\n{body}"], {"text": FILLED}),
    "normalized": (
        ["--text", "title", "--set", "input.normalize=html,whitespace"],
        {"text": [ROWS[0]["title"], ROWS[1]["title"]]},
    ),
    "a kept text": (["--text", "body", "--keep", "body"], {"body": [row["body"] for row in ROWS[:2]]}),
    "null vectors": (
        ["--text", "body", "--set", "on_bad_row=null_vector"],
        {"text": [*(row["body"] for row in ROWS[:2]), None]},
    ),
    "number in a template": (["--text", "no. {id}"], {"text": ["1", "2", "3"]}),
}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("job", JOBS)
def test_the_text_of_the_input_is_copied(cli, tmp_path: Path, job: str, kind: str) -> None:
    options, expected = JOBS[job]
    source, target = write(tmp_path / "in", kind), tmp_path / "out"
    if kind == "csv":  # which has strings only
        expected = {name: [str(value) for value in values[:2]] for name, values in expected.items()}
    cli("embed", source, target, "--model", TINY, "--set", "max_rejected=1.0", "--set", "executor=local", *options)
    assert columns(target) == expected
    if "--no-text" in options:
        return
    found = Output.open(target).verify(sample=2)  # texts come from the output itself
    assert not found.problems
    assert found.agreement > 0.999
    assert Output.open(target).verify(input=source, sample=2).problems == ()


def test_chunks_have_their_own_texts(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "a.txt", tmp_path / "out"
    text = " ".join(f"문장 {number}번은 꽤 길다." for number in range(60))
    source.write_text(f"{text}\n짧다.\n", "utf-8")
    cli("embed", source, target, "--model", TINY, "--set", "long_text=chunk", "--set", "chunk.size=32")
    found = columns(target)
    assert list(found) == ["chunk", "chunk_start", "chunk_end", "text"]
    assert len(found["text"]) > 3
    whole = [text] * (len(found["text"]) - 1) + ["짧다."]
    places = zip(whole, found["chunk_start"], found["chunk_end"], strict=True)
    assert found["text"] == [full[start:end] for full, start, end in places]
    assert not Output.open(target).verify(sample=5).problems
    hit = Output.open(target).search(found["text"][1], top_k=1)[0]
    assert hit.columns["text"] == found["text"][1]


def test_a_vector_column_cannot_take_the_name_of_the_texts(cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in", "jsonl")
    arguments = ["embed", source, tmp_path / "out", "--model", TINY, "--text", "body", "--set", "output.column=text"]
    assert "output.column: 'text' is the column of the texts" in cli(*arguments, code=2).stderr
    cli(*arguments, "--no-text", "--set", "max_rejected=1.0")


def test_rejected_texts_can_be_left_out(cli, tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(b'{"text": "good"}\n{"text": "secret", "x": \n{"text": ""}\n')
    arguments = ["--model", TINY, "--set", "max_rejected=1.0", "--no-text", "--set", "output.rejected_text=false"]
    cli("embed", source, target, *arguments)
    found = json.loads(cli("rejected", target, "--json").stdout)
    assert [row["text"] for row in found["shown"]] == [None, None]
    written = [path.read_bytes() for path in target.rglob("*") if path.is_file()]
    assert not any(b"secret" in content or b"good" in content for content in written)


def test_plan_tells_the_bytes_of_the_texts(cli, tmp_path: Path) -> None:
    arguments = ["plan", "bundled:everyday", "--model", TINY]
    assert "for the texts, which --no-text leaves out" in cli(*arguments).stdout
    with_texts = json.loads(cli(*arguments, "--json").stdout)
    without = json.loads(cli(*arguments, "--no-text", "--json").stdout)
    assert without["copied_bytes"] == 0
    assert with_texts["output_bytes"] - without["output_bytes"] == pytest.approx(with_texts["copied_bytes"], rel=0.2)
