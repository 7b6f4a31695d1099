"""The wheel: built, installed into a clean environment, and used from there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from kosbert_ray._version import __version__

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1500)]


def run(*command: object, folder: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_in_a_clean_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--quiet", "--wheel-dir", tmp_path, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"kosbert_ray/py.typed", "kosbert_ray/outputs/report/page.html.jinja"} <= {*names}
    assert not [name for name in names if name.startswith(("tests/", "jobs/", "docs/"))]

    run(sys.executable, "-m", "venv", "clean", folder=tmp_path)
    binaries = tmp_path / "clean" / "bin"
    run(binaries / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, folder=tmp_path)
    command = binaries / "kosbert-ray"
    assert run(command, "--version", folder=tmp_path) == f"kosbert-ray {__version__}\n"
    done = run(
        command, "embed", "bundled:everyday", "out", "--model", "bundled:kosbert-mini", "--keep", "text", folder=tmp_path
    )
    assert done.startswith("done: 520 rows in ")
    assert run(command, "demo", folder=tmp_path).count("\n0.") == 5
    run(command, "init", "--example", "cluster_s3", folder=tmp_path)
    assert (tmp_path / "cluster_s3.yaml").read_text("utf-8") == (ROOT / "configs" / "cluster_s3.yaml").read_text("utf-8")
    assert len(run(command, "search", "out", "비가 오는 날", "--top-k", "3", folder=tmp_path).splitlines()) >= 3
