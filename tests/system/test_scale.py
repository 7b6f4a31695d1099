"""Many files: what a plan of a billion rows takes, and a run of slices so small that only their number counts.

``KOSBERT_SLICES=100000 pytest -s -m slow tests/system/test_scale.py`` is the measurement in docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

SLICES = int(os.environ.get("KOSBERT_SLICES", "2000"))
PLAN = """
import resource, sys
from kosbert_ray.config import load_config
from kosbert_ray.job import Job
config = load_config(None, [], {"input": {"path": sys.argv[1]}})
job = Job.resolve(config)
fragments = job.fragments()
print(len({item.id for item in fragments}), sum(item.stop - item.start for item in fragments))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def fill(folder: Path, files: int, rows: int) -> None:
    """``files`` small Parquet files of the same content. (Links to one file would count as that file.)"""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["비가 오는 날입니다"] * rows}), sink)
    content = sink.getvalue().to_pybytes()
    for number in range(files):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.slow
def test_a_billion_rows_in_100_000_files_are_planned_in_less_than_a_gigabyte(tmp_path: Path) -> None:
    fill(tmp_path / "in", 100_000, 10_000)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PLAN, str(tmp_path / "in")], capture_output=True, text=True, check=True)
    counts, megabytes = done.stdout.splitlines()
    print(f"\nplanned in {time.perf_counter() - started:.1f} s, {megabytes} MB")
    assert counts == f"100000 {10**9}"
    assert int(megabytes) < 1000


@pytest.mark.slow
def test_many_slices_are_all_committed_and_an_interrupted_run_does_the_rest_only(
    cli, tiny_model: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "in", SLICES, 1)
    out = tmp_path / "out"
    arguments = ("embed", tmp_path / "in", out, "--model", tiny_model)
    done = cli(*arguments, timeout=3600)
    print("\n" + done.stderr.splitlines()[-1])
    shards = sorted(out.glob("*.parquet"))
    assert len(shards) == SLICES
    kept = {path.name: path.stat().st_mtime_ns for path in shards}
    for path in shards[::100]:  # as if the run had ended with 99 % done
        path.unlink()
        del kept[path.name]
    (out / "_SUCCESS").unlink()
    started = time.perf_counter()
    done = cli(*arguments, timeout=3600)
    print(done.stderr.splitlines()[-1], f"({time.perf_counter() - started:.1f} s in all)")
    assert f"{len(kept):,} slices are committed already" in done.stderr
    assert len(list(out.glob("*.parquet"))) == SLICES
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert ds.dataset(out, format="parquet").count_rows() == SLICES
