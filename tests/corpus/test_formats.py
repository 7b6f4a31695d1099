"""An input format is one module and one line in the table."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rows import reasons, rows

from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.formats.base import FormatInfo
from kosbert_ray.corpus.formats.table import FORMATS, format_of, info_of
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.row_table import POSITION
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.errors import InputError

PACKAGE = Path(__file__).parents[2] / "kosbert_ray"
ARRAYS = [[number, f"문장 {number}"] for number in range(500)]


@pytest.fixture
def arrays(monkeypatch) -> None:
    monkeypatch.setitem(FORMATS, "arrays", FormatInfo("arrays", (".arrays",), "json_arrays:JsonArrays"))


def test_a_format_that_is_added_to_the_table_is_listed_inspected_split_and_read(arrays: None, tmp_path: Path) -> None:
    lines = [json.dumps(item) for item in ARRAYS]
    (tmp_path / "a.arrays").write_text("\n".join([*lines[:300], "[1]"]))
    (tmp_path / "b.arrays.gz").write_bytes(gzip.compress("\n".join(lines[300:]).encode()))
    found = rows(tmp_path, keep=["id"], limits=Limits(70, 1000))
    assert [[row["id"], row["__text"]] for row in found if row["__reason"] is None] == ARRAYS
    assert len(reasons(found)) == 1 and "bad array" in reasons(found)[0]
    assert [row[POSITION] for row in found[:2]] == [0, len(lines[0]) + 1], "by byte in a plain file"
    assert [row[POSITION] for row in found[301:303]] == [0, 1], "by number in a compressed one"
    with pytest.raises(InputError, match=r"a\.arrays: no column 'title'; it has 'id', 'text' \(set input\.text\)"):
        rows(tmp_path, "title")


def test_a_format_that_is_added_to_the_table_is_a_choice_of_the_listing(arrays: None, tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text(json.dumps(ARRAYS[0]))
    with pytest.raises(InputError, match=r"\.arrays, also with .gz.* input\.format to one of .*, arrays"):
        list_corpus(str(tmp_path))
    corpus, _ = inspect(list_corpus(str(tmp_path), format="arrays"), "text", ["id"], LineOptions())
    assert [(file.name, file.format) for file in corpus.files] == [("a.dat", "arrays")]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_of_the_table_can_be_loaded(name: str) -> None:
    file = InputFile("a", 1, "v", name)
    assert format_of(file).info is info_of(file)


def test_the_table_loads_no_library() -> None:
    code = (
        "import sys, kosbert_ray.corpus.formats.table; "
        "print(sorted({'pyarrow', 'numpy', 'torch', 'ray'} & set(sys.modules)), "
        "[name for name in sys.modules if name.startswith('kosbert_ray.corpus.formats.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['kosbert_ray.corpus.formats.base', 'kosbert_ray.corpus.formats.table']"


def test_a_format_imports_neither_the_table_nor_another_format() -> None:
    helpers = {"base", "columnar", "line_based"}
    for path in sorted((PACKAGE / "corpus").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        formats = {name.rpartition(".")[2] for name in imported if name.startswith("kosbert_ray.corpus.formats.")}
        if path.parent.name == "formats":
            assert formats <= helpers, path
            assert not imported & {f"kosbert_ray.corpus.{name}" for name in ("listing", "schema", "plan", "reader")}, path
        else:
            assert formats <= {"base", "table"}, path


@pytest.mark.parametrize(
    ("name", "content", "format", "said"),
    [
        ("a.txt", b'{"text": "a"}\n[', "parquet", "broken Parquet"),
        ("a.csv", b"PAR1\x15\x04", "csv", "a Parquet file; rename it to end in .parquet, or set input.format=parquet"),
        ("a.dat", b"PAR1\x15\x04", "jsonl", "a Parquet file"),
        ("a.txt", b"id;text\n", "csv", "no column 'text'"),
        ("a.parquet.gz", b"x", "arrow", "a compressed arrow file"),
    ],
)
def test_a_refusal_of_a_forced_format_names_the_option(
    tmp_path: Path, name: str, content: bytes, format: str, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        inspect(list_corpus(str(tmp_path), format=format), "text", [], LineOptions())
    assert said in str(raised.value)
    assert (f"input.format={format}" in str(raised.value)) == (name != "a.csv"), "only where it decided"
