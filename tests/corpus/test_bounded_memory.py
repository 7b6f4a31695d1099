"""What a reader holds is bounded by bytes, however few bytes a file takes and however large its row groups are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosbert_ray.corpus.formats import columnar, csv
from kosbert_ray.corpus.formats.table import format_of
from kosbert_ray.corpus.fragments import Limits
from kosbert_ray.corpus.listing import list_corpus
from kosbert_ray.corpus.options import LineOptions
from kosbert_ray.corpus.plan import plan
from kosbert_ray.corpus.reader import FragmentReader
from kosbert_ray.corpus.schema import inspect

MB = 10**6
POOLS: list[pa.MemoryPool] = []  # a pool must outlive what was taken from it
LIMITS = Limits(max_carried=20 * MB)


def repeated(path: Path) -> None:
    """A text of 1 MB in each of 400 rows: 1 MB on disk."""
    pq.write_table(pa.table({"text": ["x" * MB] * 400, "id": range(400)}), path)


def dictionary(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["x" * MB] * 400).dictionary_encode(), "id": range(400)}), path)


def carried(path: Path) -> None:
    """2,000 rows that each carry 200 kB in a nested column."""
    pages = [[{"html": f"{row}" + "x" * 200_000}] for row in range(2000)]
    pq.write_table(pa.table({"text": [f"글 {row}" for row in range(2000)], "id": pages}), path)


def one_group(path: Path) -> None:
    """200 MB of texts that do not compress, in one row group."""
    noise = np.random.default_rng(0)
    texts = [noise.bytes(10_000).hex() for _ in range(10_000)]
    pq.write_table(pa.table({"text": texts, "id": range(10_000)}), path, compression="none", use_dictionary=False)


@pytest.mark.parametrize("make", [repeated, dictionary, carried, one_group])
def test_the_first_slices_of_a_large_file_take_little_memory(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.parquet")
    corpus, columns = inspect(list_corpus(str(tmp_path)), "text", ["id"], LineOptions())
    reader = FragmentReader(corpus.storage, columns, LineOptions(), LIMITS)
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    POOLS.append(counting)
    pa.set_memory_pool(counting)
    try:
        for piece, table in reader.slices(next(plan(corpus.files, LIMITS))):
            assert table.nbytes < 40 * MB
            if piece.index == 2:
                break
    finally:
        pa.set_memory_pool(usual)
    assert counting.max_memory() < 320 * MB, f"{counting.max_memory():,}"


def test_csv_records_are_held_by_their_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(csv, "GROUP_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_text("text\n" + f"{'x' * 400}\n" * 100)
    corpus, columns = inspect(list_corpus(str(tmp_path)), "text", [], LineOptions())
    (fragment,) = plan(corpus.files, Limits())
    tables = format_of(corpus.files[0]).rows(corpus.storage, fragment, columns, LineOptions())
    sizes = [table.num_rows for table, _ in tables]
    assert sum(sizes) == 100 and max(sizes) == 3


def test_a_nested_column_is_read_in_pieces(tmp_path: Path, monkeypatch) -> None:
    """Arrow cannot put the strings of a nested column into several chunks, so a piece must stay below 2 GB of them."""
    monkeypatch.setattr(columnar, "BATCH_BYTES", 10_000)
    rows = [{"html": "x" * 100, "n": [row]} for row in range(1000)]
    pq.write_table(pa.table({"text": [f"글 {row}" for row in range(1000)], "id": rows}), tmp_path / "a.parquet")
    corpus, columns = inspect(list_corpus(str(tmp_path)), "text", ["id"], LineOptions())
    reader = FragmentReader(corpus.storage, columns, LineOptions(), Limits(10**6, max_carried=50_000))
    tables = [table for item in plan(corpus.files, Limits()) for _, table in reader.slices(item)]
    assert len(tables) > 1 and [row for table in tables for row in table["id"].to_pylist()] == rows
