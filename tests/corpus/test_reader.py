"""A fragment is read as it was planned, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.schema import inspect
from kosbert_ray.errors import InputChanged, InputError

LIMITS = Limits(100, 10**6)


def write(folder: Path, kind: str, rows: int, mark: str = "가") -> None:
    if kind == "parquet":
        pq.write_table(pa.table({"text": [f"{mark} {number}" for number in range(rows)]}), folder / "a.parquet")
    else:
        lines = "\n".join(json.dumps({"text": f"{mark} {number}"}) for number in range(rows))
        with pa.CompressedOutputStream(str(folder / "a.jsonl.gz"), "gzip") as out:
            out.write(lines.encode())


def reading(folder: Path):
    corpus, columns = inspect(list_corpus(str(folder)), "text", [], LineOptions())
    reader = FragmentReader(corpus.storage, columns, LineOptions(), LIMITS)
    (fragment,) = plan(corpus.files, LIMITS)
    return reader.slices(fragment), corpus.files[0]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("change", ["replaced", "grown", "touched", "removed"])
def test_a_file_that_changes_while_it_is_read_never_makes_a_mixed_slice(tmp_path: Path, kind: str, change: str) -> None:
    write(tmp_path, kind, 100 if kind == "parquet" else 1000)
    slices, file = reading(tmp_path)
    path = tmp_path / file.name
    if kind == "jsonl":
        assert next(slices)[1].num_rows == 100
    if change == "removed":
        path.unlink()
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        write(tmp_path, kind, 1000 if change == "replaced" else 2000, "나")
    with pytest.raises(InputChanged, match=rf"{path.name}: (changed|removed) since the run began"):
        list(slices)


def test_a_broken_file_that_did_not_change_is_broken(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", 90_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-200])
    slices, _ = reading(tmp_path)
    with pytest.raises(InputError, match="corrupt or truncated gzip data") as raised:
        list(slices)
    assert not isinstance(raised.value, InputChanged)


def test_slices_of_one_block_share_its_bytes(tmp_path: Path) -> None:
    """Progress counts bytes: the first slices of a small file are not all of it."""
    rows = "".join(f"{number},한국어 문장 {number}\n" for number in range(900))
    (tmp_path / "a.csv").write_text("id,text\n" + rows, "utf-8")
    corpus, columns = inspect(list_corpus(str(tmp_path)), "text", ["id"], LineOptions())
    limits = Limits(100)
    reader = FragmentReader(corpus.storage, columns, LineOptions(), limits)
    (fragment,) = plan(corpus.files, limits)
    sizes = [piece.input_bytes for piece, _ in reader.slices(fragment)]
    assert sum(sizes) == corpus.size
    assert max(sizes) < 2 * min(sizes)
