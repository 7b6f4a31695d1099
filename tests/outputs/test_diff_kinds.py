"""Outputs of sparse and token vectors are compared by the neighbours that each finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kind_outputs import embed

from kosbert_ray import Output


def compared(cli: Callable[..., Any], one: Output, other: Output, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(cli("diff", one.storage.root, other.storage.root, "--json", *arguments).stdout)["agreements"])


def test_an_output_agrees_with_itself_in_every_kind(cli, sparse: Output, tokens: Output, both: Output) -> None:
    for output in (sparse, tokens, both):
        found = compared(cli, output, output, "--sample", "40", "-k", "3")
        assert tuple(found) == output.kinds
        for near in found.values():
            assert (near["rows"], near["k"], near["overlap"], near["same_nearest"]) == (40, 3, 1, 1)
            assert near["cosine"] == pytest.approx(1, abs=1e-5)
    shown = cli("diff", both.storage.root, both.storage.root).stdout
    assert "dense 256, multi-vector 256" in shown
    assert "multi-vector: of " in shown


def test_neighbours_of_other_kinds_are_those_of_a_plain_search(
    cli, sparse: Output, tokens: Output, splade: Path, tmp_path: Path
) -> None:
    limited = embed(tmp_path / "out", splade, output={"sparse_top_k": 2})
    rows = [output.to_arrow(["sparse"])["sparse"].to_pylist() for output in (sparse, limited)]
    size = 1 + max(max(row["indices"]) for row in rows[0])
    matrices = [np.zeros((len(one), size)) for one in rows]
    for matrix, one in zip(matrices, rows, strict=True):
        for number, row in enumerate(one):
            matrix[number, row["indices"]] = row["values"]
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    stored = [np.array(row, np.float32) for row in tokens.to_arrow(["multi_vector"])["multi_vector"].to_pylist()]
    late = np.array([[(a @ b.T).max(1).sum() for b in stored] for a in stored])
    pairs = {
        "sparse": (*(matrix @ matrix.T for matrix in matrices),),
        "sparse/multi_vector": (matrices[0] @ matrices[0].T, late),
    }
    for (kinds, both), other in zip(pairs.items(), (limited, tokens), strict=True):
        found = compared(cli, sparse, other, "--sample", str(len(late)), "-k", "1")[kinds]
        nearest = [np.where(np.eye(len(late), dtype=bool), -1, matrix).argmax(1) for matrix in both]
        assert found["rows"] == len(late)
        assert found["same_nearest"] == pytest.approx((nearest[0] == nearest[1]).mean(), abs=1.5 / len(late))
    assert compared(cli, sparse, limited)["sparse"]["cosine"] == pytest.approx(
        (matrices[0] * matrices[1]).sum(1).mean(), abs=1e-5
    )
