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
from kosbert_ray.outputs.nearest import nearest
from kosbert_ray.outputs.scoring import DenseScorer
from kosbert_ray.shards import vectors as module
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.shards.vector_types import ranges_of
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
        found = nearest(Storage(str(folder)), names, DenseScorer(EmbeddingFormat(5), asked, similarity), k, threads=2)
    finally:
        module.BLOCK_ROWS = module_rows
    got = [list(zip(*pair, strict=True)) for pair in zip(found.shard.tolist(), found.row.tolist(), strict=True)]
    assert got == brute(shards, asked, k, similarity, nulls)


@pytest.mark.parametrize("dtype", ["float16", "int8", "ubinary"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_fewer_bits_are_compared_as_the_numbers_they_stand_for(tmp_path: Path, dtype: str, similarity: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    queries = vectors[3:5] + 0.1
    ranges = ranges_of(vectors)
    format = EmbeddingFormat(20, dtype=dtype, ranges=ranges if dtype == "int8" else ())
    pq.write_table(pa.table({"embedding": format.array(vectors)}), tmp_path / "0.parquet")
    found = nearest(Storage(str(tmp_path)), ["0.parquet"], DenseScorer(format, queries, similarity), 10)
    low, high = np.array(ranges)
    step = (high - low) / 255
    stood_for = {
        "float16": vectors.astype(np.float16).astype(np.float32),
        "int8": low + step * (np.clip(np.floor((vectors - low) / step.astype(np.float32)), 0, 255) + 0.5),
        "ubinary": np.sign(vectors),
    }[dtype].astype(np.float32)
    expected = brute([stood_for], queries, 10, similarity, set())
    assert [[(0, row) for row in rows] for rows in found.row.tolist()] == expected


def test_a_shard_of_another_dimension_is_named(tmp_path: Path) -> None:
    write(tmp_path, [np.zeros((3, 4), np.float32)])
    with pytest.raises(StorageError, match=r"0\.parquet: cannot be read \(its vectors do not all have 5 numbers\); see"):
        nearest(Storage(str(tmp_path)), ["0.parquet"], DenseScorer(EmbeddingFormat(5), np.zeros((1, 5), np.float32)), 1)
