"""``kosbert_ray.embed``: the job from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import ROOT, TINY

PROGRAM = """
import logging, os, pathlib, signal, sys
import kosbert_ray, ray
from kosbert_ray.errors import KosbertError

_, output, model, ray_is_mine = sys.argv
output = pathlib.Path(output)
if ray_is_mine == "mine":
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)


def state():
    context = ray.data.DataContext.get_current()
    loggers = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in ("", "ray", "ray.data")}
    return {
        "stdout": sys.stdout, "stderr": sys.stderr, "descriptors": [os.fstat(number)[:2] for number in (0, 1, 2)],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "blocks": (context.target_max_block_size, context.target_min_block_size, context.enable_progress_bars),
        "context": id(context), "loggers": loggers, "environment": dict(os.environ), "ray": ray.is_initialized(),
        "handlers": [handler for handler in logging.getLogger().handlers],
    }


before = state()
summary = kosbert_ray.embed(
    pathlib.Path("bundled:everyday"), output, model=model, input={"keep": ["id"]}, encoder={"actors": 1}
)
print(summary.totals.rows, summary.new.rows, summary.output)
after = state()
for name in before:
    if before[name] != after[name]:
        print("changed:", name, before[name], after[name])
again = kosbert_ray.embed("bundled:everyday", output, model=model, input={"keep": ["id"]})
print(again.totals.rows, again.new.rows)
for wrong in ({"encoder": {"precison": "bf16"}}, {"input": {"text": "nothing"}}, {"dedup": "all"}):
    try:
        kosbert_ray.embed("bundled:everyday", output, model=model, **wrong)
    except KosbertError as error:
        print(error)
"""


@pytest.mark.parametrize("whose", ["mine", pytest.param("its own", marks=pytest.mark.slow)])
def test_a_job_from_python_gives_its_summary_and_errors_and_leaves_the_process_as_it_was(
    tmp_path: Path, whose: str
) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "결과"), TINY, whose]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"520 520 {tmp_path / '결과'}", "520 0"]
    assert "did you mean encoder.precision?" in lines[2]
    assert "no column 'nothing'" in lines[3]
    assert lines[4].startswith("config: dedup: input should be 'slice' or 'corpus', not 'all'")
    assert ds.dataset(tmp_path / "결과", format="parquet").schema.names == ["id", "text", "embedding"]
    assert "4 slices · 100.0%" in done.stderr
