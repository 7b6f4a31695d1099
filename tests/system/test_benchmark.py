"""``make bench`` on the bundled sentences: the results are consistent with the measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_results_are_consistent_with_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [
        sys.executable,
        ROOT / "jobs" / "benchmark" / "benchmark.py",
        "--model",
        benchmark.MINI,
        "--rounds",
        "2",
        "--work",
        tmp_path,
    ]
    done = subprocess.run([*command, "--only", "kosbert"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run-kosbert-mini" / "result.json").read_text("utf-8"))
    rows = {row["name"]: row for row in found["competitors"]}
    assert rows.keys() == {name for name in rows if name.startswith("kosbert-ray")} and len(rows) == 5
    for row in rows.values():
        assert not row["error"]
        assert row["peak_mb"] > 100
        for name, one in row["sets"].items():
            assert one["tokens_per_second"] / one["texts_per_second"] == pytest.approx(
                found["texts"][name]["tokens"] / found["texts"][name]["texts"]
            )
            assert one["min_cosine"] > 0.9
    assert rows["kosbert-ray torch fp32"]["sets"]["short"]["ratio"] == 1
    assert "| kosbert-ray openvino int8 | " in done.stdout


def test_flops_count_all_matrix_products() -> None:
    import numpy as np

    # kosbert-mini: 4 layers of 4 x 256 x 256 + 2 x 256 x 1024 weights, two FLOPs each; scores and sums of 10 tokens.
    weights = 4 * (4 * 256 * 256 + 2 * 256 * 1024)
    assert benchmark.flops(benchmark.MINI, np.array([10])) == 2 * weights * 10 + 4 * 4 * 256 * 100
