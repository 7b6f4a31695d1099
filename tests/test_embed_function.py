"""``kosbert_ray.embed``: the job from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import ROOT, TINY

PROGRAM = """
import sys, kosbert_ray
from kosbert_ray.errors import KosbertError

_, output, model = sys.argv
summary = kosbert_ray.embed("bundled:everyday", output, model=model, input={"keep": ["id"]}, encoder={"actors": 1})
print(summary.totals.rows, summary.new.rows, summary.output)
again = kosbert_ray.embed("bundled:everyday", output, model=model, input={"keep": ["id"]})
print(again.totals.rows, again.new.rows)
for wrong in ({"encoder": {"precison": "bf16"}}, {"input": {"text": "nothing"}}, {"dedup": "all"}):
    try:
        kosbert_ray.embed("bundled:everyday", output, model=model, **wrong)
    except KosbertError as error:
        print(error)
"""


@pytest.mark.slow  # README's recipe shows it in the fast tests
def test_a_job_from_python_gives_its_summary_and_its_errors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), TINY], capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"520 520 {tmp_path / 'out'}", "520 0"]
    assert "did you mean encoder.precision?" in lines[2]
    assert "no column 'nothing'" in lines[3]
    assert lines[4].startswith("config: dedup: input should be 'slice' or 'corpus', not 'all'")
    assert ds.dataset(tmp_path / "out", format="parquet").schema.names == ["id", "embedding"]
    assert "4 slices · 100.0%" in done.stderr
