"""Every command in README runs, in a folder prepared as a reader's would be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, everyday

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def reader(s3, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A checkout with a corpus beside it, the model in the hub's cache, and a bucket."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("kosbert_ray", "jobs", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-3.10.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "corpus").mkdir()
    rows = [json.dumps({"id": number, "text": text}) for number, text in enumerate(everyday()[:60])]
    (folder / "corpus" / "part.jsonl").write_text("\n".join(rows), "utf-8")
    hub = folder / "hf" / "hub" / "models--jhgan--ko-sbert-sts"
    shutil.copytree(tiny_model, hub / "snapshots" / COMMIT)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(COMMIT)
    files = s3.filesystem()
    if not files.exists("my-bucket"):
        files.mkdir("my-bucket")
    files.put(str(folder / "corpus" / "part.jsonl"), "my-bucket/corpus/part.jsonl")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, **s3.env, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PATH": path}


def test_readme_has_commands() -> None:
    assert {"make demo", "make test", "make lint"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_the_readme_runs(command: str, reader: tuple[Path, dict[str, str]]) -> None:
    folder, env = reader
    if command.startswith("make "):
        # With the packages installed here; and the tests do not run themselves.
        command += f" BIN={BIN} -o .venv/.installed" + (" --dry-run" if "test" in command else "")
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    if "demo" in command:
        assert "done: 520 rows in 8 shards" in done.stdout
        assert "placeholder with random weights" in done.stderr
        assert len(re.findall(r"^ *\d\.\d{4}  \S+", done.stdout, re.MULTILINE)) == 5
