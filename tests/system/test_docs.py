"""Runs every command and Python block of README and docs/, page by page, in a folder prepared like a reader's.

A block gets the strongest check that it can here:

- *run*: ``kosbert-ray`` commands in one process, other commands in a shell, Python blocks as scripts. ``s3://my-bucket``
  is a bucket of a real S3 server, ``http://HEAD:8265`` a real Ray cluster, hub names a tiny model in the hub's cache, and
  ``http://localhost:9200`` a stand-in that takes bulk requests as OpenSearch does.
- *parsed*: what needs another service (``UNAVAILABLE``), so that a wrong command, option or import fails. Long
  targets of make are resolved by ``make --dry-run``; YAML blocks are loaded as job files.

Lines below a command are its expected output: each must appear, apart from times and speeds.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from bulk_server import BulkServer
from chain import Chain
from cluster import Cluster
from conftest import everyday
from pages import ROOT, Block, Page, pages
from sparse_models import save_splade

from kosbert_ray.cli.main import whole_parser
from kosbert_ray.config import load_config

pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]

HEAD = "http://HEAD:8265"
OPENSEARCH = "http://localhost:9200"
BUCKET = "my-bucket"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIN = Path(sys.executable).parent
UNAVAILABLE = ("postgresql://", "qdrant://", "hub://", "gs://", "az://", "airflow", "kubectl", "docker", "pip install")
LONG_TARGETS = ("test", "lint", "bench", "docs", "audit")  # of make: resolved, not run
SHELL = re.compile(r"[|><;&]|\$\(|^eval |^(?!kosbert-ray )")
# A line that each command prints, whatever page it is on.
PRINTS = {
    "embed": r"^((done|trial): [\d,]+ rows|to embed: )",
    "plan": r"^tokens +[\d,]+",
    "calibrate": r"^[\d,]+ tokens/s",
    "status": r": (done|running|stopped)",
    "verify": r"^verified: .* [\d,]+ rows",
    "search": r"^ ?-?\d+\.\d{4}  +\S+",
    "cluster": r"^done: [\d,]+ rows",
    "diff": r"^rows +\d+ +\d+",
    "promote": r"^promoted: ",
    "index": r"^indexed: [\d,]+ rows?",
    "publish": r"^(published|to publish|forgotten): ",
    "load": r"^(loaded|to load): [\d,]+ rows?",
    "export": r"^exported: [\d,]+ rows",
    "report": r"^written: ",
    "init": r"^wrote ",
    "evaluate": r"float32",
    "train": r"^done: ",
    "doctor": r"^ok ",
}


@dataclass(frozen=True)
class Reader:
    """What a reader has: a prepared folder to copy, an environment, services, and a process that runs commands."""

    folder: Path
    env: dict[str, str]
    cluster: Cluster
    search: BulkServer
    chain: Chain


@pytest.fixture(scope="module")
def reader(s3, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A corpus, an output, evaluation data, and the models in the hub's cache."""
    folder = tmp_path_factory.mktemp("reader")
    hub = tmp_path_factory.mktemp("hub")
    (folder / "corpus").mkdir()
    rows = [json.dumps({"id": number, "text": text}) for number, text in enumerate(everyday()[:60])]
    (folder / "corpus" / "part.jsonl").write_text("\n".join([*rows, *rows[:5]]), "utf-8")
    for name in ("jhgan--ko-sbert-sts", "klue--bert-base"):
        cached = hub / "hub" / f"models--{name}"
        shutil.copytree(tiny_model, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
    shutil.copytree(save_splade(tmp_path_factory.mktemp("splade"), "bert"), folder / "models" / "splade")
    (folder / "questions.txt").write_text("\n".join(everyday()[60:63]), "utf-8")
    (folder / "korsts").mkdir()
    for name, start in (("train", 0), ("dev", 40), ("test", 80)):
        texts = everyday()[start : start + 40]
        pairs = [f"{a}\t{b}\t{(start + i) % 6}" for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
        (folder / "korsts" / f"sts-{name}.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(pairs), "utf-8")
    shutil.copytree(ROOT / "configs", folder / "configs")
    lake = tmp_path_factory.mktemp("lake")
    catalog = {
        "PYICEBERG_CATALOG__PROD__URI": f"sqlite:///{lake}/catalog.db",
        "PYICEBERG_CATALOG__PROD__WAREHOUSE": f"file://{lake}",
    }
    env = {
        **s3.env,
        **catalog,
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), env, workers=0, options=["--num-cpus=4"])
    env = {**cluster.env, "RAY_ADDRESS": cluster.head}
    chain, search = Chain(env), BulkServer()
    try:
        code, output = chain.run(
            ["embed", "corpus/", "vectors/", "--model", "bundled:kosbert-mini", "--keep", "id,text"], folder
        )
        assert code == 0, output
        yield Reader(folder, env, cluster, search, chain)
    finally:
        chain.end()
        search.stop()
        cluster.end()


@pytest.fixture
def desk(reader: Reader, s3, page: Page, tmp_path: Path) -> Path:
    """The page's own copy of the reader's folder, and its own bucket."""
    folder = tmp_path / page.slug
    makes_vectors = re.search(r"kosbert-ray embed \S+ vectors/", page.text)
    skip = shutil.ignore_patterns("vectors") if makes_vectors else None
    shutil.copytree(reader.folder, folder, ignore=skip)
    if re.search(r"^\$ (make|python|ray) ", page.text, re.MULTILINE):
        for name in ("kosbert_ray", "jobs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
    files = s3.filesystem()
    files.mkdir(page.slug)
    files.put(str(folder / "corpus" / "part.jsonl"), f"{page.slug}/corpus/part.jsonl")
    return folder


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.slug)
def test_the_blocks_of_a_page_run(page: Page, reader: Reader, desk: Path) -> None:
    problems = []
    for block in page.blocks("console", "bash", "python", "yaml"):
        for name, problem in check(block, page, reader, desk):
            if problem:
                problems.append(f"$ {name}\n{problem}")
    assert not problems, "\n\n".join(problems)


def check(block: Block, page: Page, reader: Reader, desk: Path) -> Iterator[tuple[str, str]]:
    """Names and problems of what is in a block; no problem is an empty string."""
    if block.language == "yaml":
        load_config(yaml.safe_load(block.content))
    elif block.language == "python":
        yield "python", check_script(block.content, reader, desk)
    else:
        for command, expected in block.commands():
            yield command, check_command(command, expected, page, reader, desk)


def check_command(command: str, expected: list[str], page: Page, reader: Reader, desk: Path) -> str:
    """Runs or parses a command; returns what is wrong with it."""
    if any(word in command for word in UNAVAILABLE):
        return parsed(command)
    command = (
        command.replace(HEAD, reader.cluster.address).replace(OPENSEARCH, reader.search.address).replace(BUCKET, page.slug)
    )
    code, output = run(command, reader, desk)
    if code:
        return f"exit code {code}\n{output}"
    words = command.split()
    pattern = PRINTS.get(words[1]) if words[0] == "kosbert-ray" and len(words) > 1 else None
    if pattern and not re.search(pattern, output, re.MULTILINE) and not {"-o", "--json", "--status", "--stop"} & {*words}:
        return f"printed nothing like {pattern}\n{output}"
    if "-k" in words and words[1] == "search":
        hits = rows_found(output)
        if hits != int(words[words.index("-k") + 1]):
            return f"{hits} hits\n{output}"
    if "-o" in words and not (desk / words[words.index("-o") + 1]).stat().st_size:
        return "wrote an empty file"
    demo = command in ("make demo", "kosbert-ray demo")
    if demo and ("done: 520 rows in 8 shards" not in output or len(demo_hits(output)) != 10):
        return output
    printed = {comparable(line) for line in output.splitlines()}
    missing = [line for line in expected if not any(comparable(line) in line_printed for line_printed in printed)]
    return "".join(f"not printed: {line}\n" for line in missing) + (output if missing else "")


def run(command: str, reader: Reader, desk: Path) -> tuple[int, str]:
    """Exit code and output of a command."""
    if not SHELL.search(command):
        return reader.chain.run(shlex.split(command)[1:], desk)
    if command.startswith("make "):
        command += f" BIN={BIN} -o .venv/.installed -o .venv/.demo -o .venv-docs/.installed -o .venv-airflow/.installed"
        command += " --dry-run" * any(command.split()[1].startswith(target) for target in LONG_TARGETS)
    env = {name: value for name, value in reader.env.items() if name != "RAY_ADDRESS" or not command.startswith("ray ")}
    done = subprocess.run(["bash", "-c", command], cwd=desk, env=env, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def rows_found(output: str) -> int:
    """Rows in a table of hits; rows that differ in nothing but their place are one line with their number."""
    counted = re.search(r"^ *score +rows ", output, re.MULTILINE)
    lines = re.findall(PRINTS["search"], output, re.MULTILINE)
    return sum(int(line.split()[1]) for line in lines) if counted else len(lines)


def demo_hits(output: str) -> list[str]:
    return re.findall(r"^ *\d\.\d{4}  +\S+", output, re.MULTILINE)


def comparable(line: str) -> str:
    """A line of output without what differs from run to run: folders, times, speeds, the last digits of a score."""
    line = re.sub(r"(?<![\w.])/(?:[^\s/:]+/)*", "", line)
    line = re.sub(r"\d[\d,.]*(?= ?(?:s|min|h|rows/s|tokens/s|MB|kB)\b)", "N", line)
    return " ".join(re.sub(r"\b(\d\.\d\d)\d+", r"\1", line).split())


def parsed(command: str) -> str:
    """What is wrong with a command by its arguments and options alone."""
    words = shlex.split(command)
    if words[0] == "pip":
        extras = {extra for word in words for found in re.findall(r"\[(.*?)\]", word) for extra in found.split(",")}
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        return f"no extra {min(extras - {*known})}" if extras - {*known} else ""
    if words[0] == "make":
        target = re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return "" if target else "no such target"
    if words[0] != "kosbert-ray":
        return f"neither run nor parsed: add {words[0]} to this test"
    arguments = whole_parser().parse_args(words[1:])
    load_config(getattr(arguments, "config", None), getattr(arguments, "set", []))
    return ""


def check_script(code: str, reader: Reader, desk: Path) -> str:
    """Runs a Python block, or checks the imports of one that needs Airflow; returns what is wrong with it."""
    if "airflow" in code:
        return missing_imports(code)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=desk, env=reader.env, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        return done.stderr
    if "vectors.tsv" in code:
        rows = [line.split("\t") for line in (desk / "vectors.tsv").read_text("utf-8").splitlines()]
        return "" if {len(json.loads(row[2])) for row in rows} == {256} else f"{len(rows)} rows of other lengths"
    return "" if done.stdout.strip() else "printed nothing"


def missing_imports(code: str) -> str:
    """Names that a script imports from kosbert_ray, and keywords, that are not defined there."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kosbert_ray"):
            module = ROOT / f"{str(node.module).replace('.', os.sep)}.py"
            source = module.read_text("utf-8")
            wrong += [
                alias.name for alias in node.names if not re.search(rf"^(class|def) {alias.name}\b", source, re.MULTILINE)
            ]
        if isinstance(node, ast.Call):
            source = (ROOT / "kosbert_ray" / "integrations" / "airflow.py").read_text("utf-8")
            keywords = [keyword.arg for keyword in node.keywords if keyword.arg not in (None, "task_id")]
            wrong += [str(name) for name in keywords if not re.search(rf"\b{name}: ", source)]
    return f"not defined: {', '.join(wrong)}" if wrong else ""
