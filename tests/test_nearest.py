"""Nearest rows: what brute force in numpy finds, whatever the blocks, the shards and the nulls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosbert_ray.errors import StorageError
from kosbert_ray.shards import nearest as module
from kosbert_ray.shards.nearest import nearest, rows_of
from kosbert_ray.storage import Storage


def write(folder: Path, shards: list[np.ndarray], fixed: bool = False, nulls: set[tuple[int, int]] = frozenset()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, vectors in enumerate(shards):
        rows = [None if (index, row) in nulls else vector.tolist() for row, vector in enumerate(vectors)]
        kind = pa.list_(pa.float32(), vectors.shape[1]) if fixed else pa.list_(pa.float32())
        table = pa.table({"id": range(len(rows)), "embedding": pa.array(rows, kind)})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=7)


def brute(
    shards: list[np.ndarray], queries: np.ndarray, k: int, similarity: str, nulls: set[tuple[int, int]]
) -> list[list]:
    places = [(s, r) for s, vectors in enumerate(shards) for r in range(len(vectors)) if (s, r) not in nulls]
    matrix = np.array([shards[s][r] for s, r in places], np.float32).reshape(len(places), queries.shape[1])
    if similarity == "cosine":
        matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-30)
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    scores = queries @ matrix.T
    return [[places[index] for index in np.argsort(-row, kind="stable")[:k]] for row in scores]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    queries=st.integers(1, 5),
    k=st.integers(1, 60),
    similarity=st.sampled_from(["cosine", "dot"]),
    fixed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_recall_against_brute_force_is_1(tmp_path_factory, sizes, queries, k, similarity, fixed, seed) -> None:
    random = np.random.default_rng(seed)
    # Small whole numbers: scores are exact, and many are equal.
    shards = [random.integers(-2, 3, (size, 5)).astype(np.float32) for size in sizes]
    asked = random.integers(-2, 3, (queries, 5)).astype(np.float32)
    if similarity == "cosine":  # rounding would tell equal ones apart
        shards = [random.normal(size=vectors.shape).astype(np.float32) for vectors in shards]
    nulls = {(index, row) for index, size in enumerate(sizes) for row in range(size) if random.random() < 0.1}
    folder = tmp_path_factory.mktemp("nearest")
    write(folder, shards, fixed, nulls)
    names = [f"{index}.parquet" for index in range(len(sizes))]
    module_rows, module.BLOCK_ROWS = module.BLOCK_ROWS, 6
    try:
        found = nearest(Storage(str(folder)), names, "embedding", asked, k, similarity, threads=2)
    finally:
        module.BLOCK_ROWS = module_rows
    got = [list(zip(*pair, strict=True)) for pair in zip(found.shard.tolist(), found.row.tolist(), strict=True)]
    assert got == brute(shards, asked, k, similarity, nulls)


def test_columns_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [np.zeros((30, 2), np.float32)])
    found = rows_of(Storage(str(tmp_path)), "0.parquet", [29, 3, 8], ["id"])
    assert [row["id"] for row in found] == [29, 3, 8]


def test_float16_vectors_are_compared_as_numbers(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    rows = pa.array(list(vectors), pa.list_(pa.float16()))
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "0.parquet")
    found = nearest(Storage(str(tmp_path)), ["0.parquet"], "embedding", vectors[3:4].astype(np.float32), 5, "dot")
    expected = np.argsort(-(vectors.astype(np.float32) @ vectors[3].astype(np.float32)), kind="stable")[:5]
    assert found.row[0].tolist() == expected.tolist()


def test_a_shard_of_another_dimension_is_named(tmp_path: Path) -> None:
    write(tmp_path, [np.zeros((3, 4), np.float32)])
    with pytest.raises(StorageError, match=r"0\.parquet: cannot be searched \(its vectors do not all have 5 numbers\)"):
        nearest(Storage(str(tmp_path)), ["0.parquet"], "embedding", np.zeros((1, 5), np.float32), 1)
