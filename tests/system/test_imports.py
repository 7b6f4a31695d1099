"""Imports go one way (see docs/explanation/architecture.md), and the command loads no more than it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kosbert_ray"
BASE = {"errors", "units", "logs", "vectors", "_version"}
OPTIONS = {"settings"} | BASE  # what a room's options.py may import; config.py and rooms above it may import any
CORE = {"corpus", "model", "encoder", "shards", "storage", "settings"} | BASE
JOB = {"job", "kept_texts", "stored", "config", "options"} | CORE
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {
    "errors": set(),
    "units": set(),
    "vectors": set(),
    "logs": set(),
    "_version": set(),
    "settings": BASE,
    "storage": {"settings"} | BASE,
    "corpus": {"storage", "settings"} | BASE,
    "model": {"storage", "settings"} | BASE,
    "encoder": {"model", "storage", "settings"} | BASE,
    "shards": {"storage", "settings"} | BASE,
    "analysis": BASE,
    "config": {"options"} | CORE,
    "stored": {"config"} | CORE,
    "job": {"stored", "config"} | CORE,
    "kept_texts": {"config"} | CORE,
    "run": JOB,
    "outputs": JOB | {"analysis"},
    "evaluation": CORE,
    "training": {"evaluation", "model", "encoder", "settings", "storage"} | BASE,
    "planning": {"run", "outputs"} | JOB,
    "deploy": JOB,
    "integrations": {"deploy"} | JOB,
    "cli": {"planning", "deploy", "training", "evaluation", "run", "outputs"} | JOB,
    "__init__": {"run", "outputs"} | JOB,
}
OWNERS = {
    "ray": {"run", "planning", "deploy", "training"},
    "airflow": {"integrations"},
    "plotly": {"outputs"},
    "jinja2": {"outputs"},
    "openvino": {"encoder"},
    "torch": {"model", "encoder", "training"},
    "transformers": {"model", "encoder", "training"},
    "peft": {"model"},
    "huggingface_hub": {"model"},
    "sentence_transformers": {"model", "training", "planning"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    here = room(path)
    allowed = OPTIONS if path.name == "options.py" else ROOMS.get(here, set())
    for name in imports_of(ast.parse(path.read_text("utf-8"))):
        parts = name.split(".")
        if parts[0] == "kosbert_ray" and len(parts) > 1 and parts[1] in ROOMS and here in ROOMS and parts[1] != here:
            there = "options" if parts[2:3] == ["options"] and parts[1] not in allowed else parts[1]
            assert there in allowed, f"{here} must not import {name}"
        if parts[0] in OWNERS:
            assert here in OWNERS[parts[0]], f"{here} must not import {name}"


def test_no_module_imports_itself_through_others() -> None:
    """Imports for type checkers only are not among them."""
    modules = {".".join(("kosbert_ray", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        graph[module] = imports_of(tree) & modules.keys() - {module}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_options_load_pydantic_and_nothing_heavier() -> None:
    heavy = "{'ray', 'torch', 'transformers', 'pyarrow', 'numpy', 'fsspec'}"
    code = f"import sys; from kosbert_ray.config import load_config; load_config(None); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", ["kosbert_ray.cli", "kosbert_ray.run.lifecycle"])
def test_the_command_and_its_planning_load_neither_ray_nor_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'openvino', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
