"""Odd environments: closed and full streams, other encodings, wrong addresses, Ray's own troubles. One line each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY, command

from kosbert_ray.cli import main
from kosbert_ray.config import load_config
from kosbert_ray.errors import JobFailed, KosbertError, ModelError, UsageError
from kosbert_ray.run.executors.ray import session
from kosbert_ray.run.executors.ray.errors import error_of
from kosbert_ray.run.options import RayOptions

PINNED = Path(__file__).parents[1] / "outputs_0_1_0"


def test_a_run_whose_standard_error_nobody_reads_goes_on_to_its_end(tmp_path: Path) -> None:
    line = " ".join(command("embed", "bundled:everyday", tmp_path / "out", "--model", TINY, "--set", "slice.max_rows=65"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} 2>&1 | head -1"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_result_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("search", PINNED / "whole", "비"), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_terminal_in_another_encoding_shows_what_it_can(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "euc-kr"}
    done = subprocess.run(
        command("search", PINNED / "whole", "😀 똠방각하"), cwd=ROOT, env=env, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("euc-kr")


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_signals: None
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of no one's making")

    monkeypatch.setattr("kosbert_ray.outputs.status.status", broken)
    assert main(["status", str(PINNED / "whole")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "error: ZeroDivisionError: of no one's making; this is a bug in kosbert-ray" in lines[-1]
    assert any("in broken" in line for line in lines), "where no terminal is, the log holds the traceback"


def test_a_job_api_is_no_address_of_a_cluster() -> None:
    address = "http://127.0.0.1:8265"
    with (
        pytest.raises(UsageError, match=f"kosbert-ray submit --address {address}"),
        session.joined(RayOptions(address=address)),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\nThis process:\n"
            ),
            ("Ray: 2.59.0 Python: 3.12.1", "kosbert-ray submit"),
        ),
        (PermissionError("[Errno 13] Permission denied: 'ray/session_1'"), ("RAY_TMPDIR",)),
        (RuntimeError("Could not determine home directory."), ("set HOME",)),
    ],
)
def test_rays_own_troubles_come_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: tuple[str, ...]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(session.ray, "init", fail)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)  # the tests' own Ray stays
    with pytest.raises(JobFailed) as raised, session.joined(RayOptions(address="auto")):
        pass
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_our_own_line_is_found_in_rays_traceback() -> None:
    text = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::MapWorker\x1b[39m\n"
        "  File x\nkosbert_ray.errors.ModelError: m: a Git LFS pointer; run git lfs pull\n"
    )
    found = error_of(RuntimeError(text))
    assert isinstance(found, ModelError)
    assert str(found) == "m: a Git LFS pointer; run git lfs pull"
    assert isinstance(error_of(RuntimeError("kosbert_ray.errors.os: no class of ours")), KosbertError)


def test_paths_are_path_objects_and_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config({"input": {"path": Path("in")}, "output": {"path": "~/out"}, "model": {"name": Path("m")}})
    assert (config.input.path, config.output.path, config.model.name) == ("in", f"{tmp_path}/out", "m")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_as_good_as_the_null_device(closed: str) -> None:
    line = " ".join(map(str, command("status", PINNED / "whole")))
    done = subprocess.run(["bash", "-c", f"{line} {closed}"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") is closed.startswith(">")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_buffered_result_that_cannot_be_written_is_an_error_too(tmp_path: Path) -> None:
    line = " ".join(map(str, command("status", PINNED / "whole")))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 0; {line} > {tmp_path}/result"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("the result is incomplete")
    assert "Traceback" not in done.stderr


def test_a_query_is_utf_8_whatever_the_locale_says(told: Callable[..., str]) -> None:
    assert "'\\udcff' is not UTF-8 text" in told("search", PINNED / "whole", "\udcff", code=2)


def test_a_line_stays_one_line_whatever_a_file_is_called(tmp_path: Path, told: Callable[..., str]) -> None:
    assert told("embed", tmp_path / "no\nfile", tmp_path / "out", code=1).endswith(r"no\nfile: no such file or folder")
