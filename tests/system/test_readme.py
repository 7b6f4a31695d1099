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
from cluster import Cluster
from conftest import ROOT, everyday

README = (ROOT / "README.md").read_text("utf-8")
# Each once, where it first stands.
COMMANDS = list(
    dict.fromkeys(
        line.removeprefix("$ ")
        for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    )
)
RECIPES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
HEAD = "http://HEAD:8265"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def reader(s3, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A checkout with a corpus beside it, the model in the hub's cache, and a bucket."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("kosbert_ray", "jobs", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "corpus").mkdir()
    rows = [json.dumps({"id": number, "text": text}) for number, text in enumerate(everyday()[:60])]
    (folder / "corpus" / "part.jsonl").write_text("\n".join(rows), "utf-8")
    for name in ("jhgan--ko-sbert-sts", "klue--bert-base"):
        hub = folder / "hf" / "hub" / f"models--{name}"
        shutil.copytree(tiny_model, hub / "snapshots" / COMMIT)
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text(COMMIT)
    (folder / "questions.txt").write_text("\n".join(everyday()[60:63]), "utf-8")
    (folder / "korsts").mkdir()
    for name, start in (("train", 0), ("dev", 40), ("test", 80)):
        texts = everyday()[start : start + 40]
        pairs = [f"{a}\t{b}\t{(start + i) % 6}" for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
        (folder / "korsts" / f"sts-{name}.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(pairs), "utf-8")
    files = s3.filesystem()
    if not files.exists("my-bucket"):
        files.mkdir("my-bucket")
    files.put(str(folder / "corpus" / "part.jsonl"), "my-bucket/corpus/part.jsonl")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, **s3.env, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PATH": path}


def test_readme_has_commands() -> None:
    assert {"make demo", "make test", "make lint"} <= set(COMMANDS)


def is_slow(line: str) -> bool:
    """What needs a cluster, or repeats what others run."""
    return any(word in line for word in (HEAD, "versions/", "local_gpu", "chunks/", "make lint"))


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=pytest.mark.slow) if is_slow(line) else line for line in COMMANDS]
)
def test_a_command_in_the_readme_runs(command: str, reader: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, env = reader
    cluster = Cluster(tmp_path, env) if HEAD in command else None
    try:
        if cluster:
            command, env = command.replace(HEAD, cluster.address), cluster.env
        run_command(command, folder, env)
    finally:
        if cluster:
            cluster.end()


def run_command(command: str, folder: Path, env: dict[str, str]) -> None:
    if command.startswith("make "):
        # With the packages installed here; and the tests do not run themselves.
        command += f" BIN={BIN} -o .venv/.installed" + (" --dry-run" if "test" in command or "bench" in command else "")
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    if "demo" in command:
        assert "done: 520 rows in 8 shards" in done.stdout
        assert len(re.findall(r"^ *\d\.\d{4}  \S+", done.stdout, re.MULTILINE)) == 5


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe_in_the_readme_runs_on_the_demos_output(number: int, reader: tuple[Path, dict[str, str]]) -> None:
    folder, env = reader
    if not (folder / "demo-out" / "_SUCCESS").exists():
        demo = [BIN / "kosbert-ray", "embed", "--config", "configs/quickstart.yaml"]
        subprocess.run(demo, cwd=folder, env=env, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", RECIPES[number]], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "vectors.tsv" in RECIPES[number]:
        rows = [line.split("\t") for line in (folder / "vectors.tsv").read_text("utf-8").splitlines()]
        assert len(rows) == 520
        assert {len(json.loads(row[2])) for row in rows} == {256}
    else:
        assert done.stdout.strip()
