"""One workstation, by ``configs/local_gpu.yaml``: no cluster is needed, no dashboard runs, and nothing is left running."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY, alive, command, wait_for


def rays() -> dict[int, str]:
    """Ray's processes on this machine."""
    found = {}
    for process in alive(list(psutil.process_iter())):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in line for word in ("raylet/raylet", "gcs_server", "ray::", "ray/dashboard/", "log_monitor")):
            found[process.pid] = line
    return found


@pytest.mark.slow
def test_a_local_run_has_no_dashboard_and_leaves_no_process(tmp_path: Path) -> None:
    before = rays()
    arguments = ["embed", "bundled:everyday", tmp_path / "out", "--config", "configs/local_gpu.yaml", "--model", TINY]
    arguments += ["--set", "executor=ray"]
    job = subprocess.Popen(command(*arguments, "--set", "slice.max_rows=20"), stderr=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "out").glob("*.parquet")), 60, "no shard")
    during = {pid: line for pid, line in rays().items() if pid not in before}
    assert job.wait(60) == 0
    assert any("raylet/raylet" in line for line in during.values())
    # Ray has that process in any case; what it must not do is serve pages.
    assert all("--disable-frontend" in line for line in during.values() if "ray/dashboard/dashboard.py" in line)
    wait_for(lambda: not rays().keys() & during.keys(), 15, "processes are left")
