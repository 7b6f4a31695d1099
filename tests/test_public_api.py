"""The public Python API: what it exports, that importing it is cheap, and that the examples in its docstrings are right."""

from __future__ import annotations

import doctest
import inspect
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest

import kosbert_ray
from kosbert_ray import Output

PINNED = Path(__file__).parent / "outputs_0_1_0"
METHODS = [name for name, value in vars(Output).items() if inspect.isfunction(value) and not name.startswith("_")]
# Methods for the package's own tools; their docstrings need no example.
INTERNAL = {"require_complete", "warn_if_partial", "vector_format", "column_format", "kind_format", "model", "encoder"}


def examples(name: str) -> list[doctest.DocTest]:
    """Examples in the docstring of ``name``, and of a class also in those of its methods and properties."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    public = getattr(kosbert_ray, name)
    found = finder.find(public, name, globs={})
    for attribute, value in vars(public).items():
        if isinstance(value, cached_property):  # which doctest does not look into
            found += finder.find(value.func, f"{name}.{attribute}", globs={})
    return [case for case in found if case.examples]


CASES = [case for name in ("Output", "Encoder", "plan", "search", "status", "verify") for case in examples(name)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the examples, which read an output ``vectors``."""
    shutil.copytree(PINNED / "whole", tmp_path / "vectors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(case: doctest.DocTest) -> None:
    """Runs the examples of one docstring."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(case, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_example_in_a_docstring_gives_what_it_says(case: doctest.DocTest, folder: Path) -> None:
    run(case)


def test_the_example_of_embed_gives_what_it_says(folder: Path) -> None:
    (case,) = examples("embed")
    run(case)
    assert Output.open(folder / "embeddings").totals.rows == 520


def test_every_public_docstring_has_an_example() -> None:
    documented = {case.name for case in CASES}
    assert {f"Output.{name}" for name in METHODS} - {f"Output.{name}" for name in INTERNAL} <= documented
    assert {"Output", "Output.open", "Output.totals"} <= documented
    assert any(name.startswith("Encoder") for name in documented)


def test_the_package_exports_what_it_names() -> None:
    functions = ["embed", "plan", "search", "status", "verify"]
    assert kosbert_ray.__all__ == ["Encoder", "KosbertError", "Output", "__version__", *functions]
    assert all(getattr(kosbert_ray, name) for name in kosbert_ray.__all__)
    assert {*kosbert_ray.__all__} <= {*dir(kosbert_ray)}
    with pytest.raises(AttributeError, match="no attribute 'Shard'"):
        _ = kosbert_ray.Shard
    assert (Path(kosbert_ray.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import kosbert_ray", {"ray", "torch", "numpy", "pyarrow", "pydantic"}),
        ("from kosbert_ray import Output", {"ray", "torch", "transformers", "plotly", "sklearn"}),
    ],
)
def test_importing_is_cheap(code: str, heavy: set[str]) -> None:
    script = f"import sys; {code}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
