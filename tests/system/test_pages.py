"""The pages say what the code does: names, tables and links are compared with it. test_docs.py runs their commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from pages import GENERATED, ROOT, Page, pages
from test_imports import OWNERS, ROOMS

from kosbert_ray import errors
from kosbert_ray.cli.main import whole_parser
from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.formats.table import FORMATS
from kosbert_ray.errors import KosbertError
from kosbert_ray.settings import Section
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import REJECTED_SCHEMA
from kosbert_ray.shards.totals import Totals

README = Page("README.md")
BENCHMARKS = Page("docs/explanation/benchmarks.md")
LAYOUT = Page("docs/reference/output-layout.md")
MEASURED = re.compile(r"\d(?: tokens/s| rows/s| slices/s| MB/s)")
ASSUMED = "2 M tokens/s"  # of a GPU, in the formulas of scale.md
EVERY_PAGE = pytest.mark.parametrize("page", pages(), ids=lambda page: page.slug)


def commands() -> dict[str, set[str]]:
    """Options of each command; those of kosbert-ray itself under an empty name."""
    parser = whole_parser()
    choices = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    return {name: {*found._option_string_actions} for name, found in [*choices.items(), ("", parser)]}


def options(model: type[Section] = JobConfig, before: str = "") -> set[str]:
    """Dotted names of all options."""
    found = set()
    for name, field in model.model_fields.items():
        section = field.annotation
        found.add(before + name)
        if isinstance(section, type) and issubclass(section, Section):
            found |= options(section, f"{before}{name}.")
    return found


def marked(page: Page, name: str) -> str:
    """What is between two markers."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page.text, re.DOTALL)
    assert found, f"{page.name}: no markers {name}"
    return found[1]


def tables(page: Page, heading: str) -> list[list[str]]:
    """Cells of each row of the tables in a section, without their header rows."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", page.text, re.DOTALL | re.MULTILINE)
    assert section, f"{page.name}: no section {heading}"
    rows = [line.strip("|").split("|") for line in section[1].splitlines() if line.startswith("|")]
    headers = {number - 1 for number, row in enumerate(rows) if set("".join(row)) <= set("- :")}
    return [
        [cell.strip() for cell in row]
        for number, row in enumerate(rows)
        if not {number, number + 1} & {h + 1 for h in headers}
    ]


def names(cells: list[str]) -> list[str]:
    """What is in backticks in some cells."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_readme_is_short_and_begins_with_the_demo_and_the_tests() -> None:
    assert len(README.text.splitlines()) < 200
    commands = [command for block in README.blocks("console") for command, _ in block.commands()]
    assert commands[2:5] == ["kosbert-ray demo", "make demo", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


@EVERY_PAGE
def test_links_lead_somewhere(page: Page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.path.parent / path) if path else page.path
        if any(str(file.resolve()).endswith(name) for name in GENERATED):
            continue
        assert file.exists(), target
        if fragment and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_the_site_lists_every_page() -> None:
    def leaves(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [leaf for value in (item.values() if isinstance(item, dict) else item) for leaf in leaves(value)]  # type: ignore[attr-defined]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted([*GENERATED, *(page.name.removeprefix("docs/") for page in pages()[1:])])


@EVERY_PAGE
def test_what_is_named_exists(page: Page) -> None:
    known, commands_known = options(), commands()
    flags = set().union(*commands_known.values())
    extras = {*re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)}
    sections = {name.partition(".")[0] for name in known if "." in name}
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)}
    for span in page.spans():
        for name in re.findall(r"(?<![\w./-])([a-z_]+\.[a-z_]+)(?![\w./(-])", span):
            if name.partition(".")[0] in sections and f"{name}.py" != span and not name.endswith((".py", ".json")):
                assert name in known, span
        if span.startswith("kosbert-ray ") and not span.split()[1].startswith("-"):
            assert span.split()[1] in commands_known, span
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span):
            others = ("ray ", "pytest", "python jobs", "make", "mypy", "--build-arg", "--num-cpus")
            assert flag in flags or span.startswith(others), span
        if re.fullmatch(r"(kosbert_ray|configs|jobs|tests|docs)/[\w./-]+", span) and "<" not in span:
            assert (ROOT / span).exists() or "formats" in span or "engines" in span or "export" in span, span
        for extra in re.findall(r"pip install '?(?:\.|kosbert-ray)\[(\w+)\]", span):
            assert extra in extras, span
        if span.startswith("make "):
            assert span.split()[1] in targets, span


def test_measured_figures_are_on_one_page() -> None:
    selection = marked(BENCHMARKS, "benchmark")
    assert marked(README, "benchmark") == selection
    whole: dict[str, list[str]] = {}
    for name, *cells in tables(BENCHMARKS, "CPU engines"):
        whole.setdefault(name, cells)
    for row in selection.splitlines()[2:]:
        name, *figures = (cell.strip() for cell in row.strip("|").split("|"))
        assert [cell.split()[0] for cell in whole[name][:2]] == figures
    for page in pages():
        if page != BENCHMARKS:
            prose = page.prose.replace(selection, "").replace(ASSUMED, "")
            assert not MEASURED.search(prose), f"{page.name}: {MEASURED.search(prose)}"


def test_the_constants_behind_each_policy_exist() -> None:
    page = Page("docs/explanation/failures-and-retries.md")
    found = re.findall(r"`(kosbert_ray/[\w/]+\.py):(\w+)`", page.text)
    assert len(found) > 15
    for name, constant in found:
        tree = ast.parse((ROOT / name).read_text("utf-8"))
        defined = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        defined |= {
            node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        defined |= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert constant in defined, f"{name}:{constant}"
    assert all(
        name in options() for name in re.findall(r"option[s]? ((?:`[\w.]+`(?:, )?)+)", page.text) for name in names([name])
    )


def test_the_errors_are_those_of_the_code() -> None:
    listed = {cells[0]: cells[1:3] for cells in tables(Page("docs/reference/errors-and-exit-codes.md"), "Errors")}
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, KosbertError)]
    assert listed == {f"`{item.__name__}`": [f"`{item.__bases__[0].__name__}`", str(item.exit_code)] for item in classes}


def rules() -> str:
    """The rules for imports as a table."""
    rows = [
        f"| `{room}` | {', '.join(f'`{name}`' for name in sorted(allowed)) or 'nothing'} |"
        for room, allowed in ROOMS.items()
    ]
    return "\n".join(["| room | may import |", "|---|---|", *rows])


def owners() -> str:
    """Which rooms import which packages, as a table."""
    rows = [
        f"| `{package}` | {', '.join(f'`{name}`' for name in sorted(allowed))} |" for package, allowed in OWNERS.items()
    ]
    return "\n".join(["| package | rooms |", "|---|---|", *rows])


def test_the_rules_for_imports_are_those_of_the_tests() -> None:
    page = Page("docs/explanation/architecture.md")
    assert marked(page, "imports") == rules(), f"put this between the markers:\n{rules()}"
    assert marked(page, "owners") == owners(), f"put this between the markers:\n{owners()}"


def test_the_layout_names_every_column_and_key() -> None:
    receipts = names([cells[0] for cells in tables(LAYOUT, "Receipts")])
    assert sorted(receipts) == sorted(field.name for field in fields(Receipt))
    rejected = [(cells[0].strip("`"), cells[1]) for cells in tables(LAYOUT, "Rejected rows")]
    assert rejected == [(field.name, str(field.type)) for field in REJECTED_SCHEMA]
    fingerprint = names([cells[0] for cells in tables(LAYOUT, "Fingerprint")])
    assert sorted(fingerprint) == sorted(field.name for field in fields(Fingerprint))
    success = names([cells[0] for cells in tables(LAYOUT, "`_SUCCESS`")])
    assert {*success} == {field.name for field in fields(Totals)} | {
        "run",
        "manifest",
        "files",
        "seconds",
        "skipped_files",
        "skipped_endings",
    }


def test_the_formats_are_those_of_the_table() -> None:
    cells = [cell for row in tables(Page("docs/guides/inputs.md"), "Formats") for cell in row[:2]]
    listed = [name for name in names(cells) if name.startswith(".")]
    assert sorted(listed) == sorted(suffix for info in FORMATS.values() for suffix in info.suffixes)


def test_the_metrics_are_those_of_the_code() -> None:
    source = (ROOT / "kosbert_ray" / "run" / "executors" / "ray" / "metrics.py").read_text("utf-8")
    series = {*re.findall(r'^    "(\w+)": "', source, re.MULTILINE)} | {*re.findall(r'"kosbert_(\w+)"', source)}
    assert {*names([cells[0] for cells in tables(Page("docs/guides/monitor.md"), "Metrics")])} == series - {""}


def test_the_prose_of_the_pages_passes() -> None:
    paths = ["docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
    done = subprocess.run([sys.executable, ROOT / "docs" / "prose.py", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_prose_check_finds_banned_words_and_openings(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""What it does."""\nX = "mend it"\n# anew\nY = "mend it"  # prose: ok\n')
    done = subprocess.run([sys.executable, ROOT / "docs" / "prose.py", tmp_path / "a.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split(":")[1] for line in done.stdout.splitlines() if "a.py" in line] == ["1", "2", "3"]
