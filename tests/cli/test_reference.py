"""The generated reference pages are those of the code, and help texts are the options' own descriptions."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from kosbert_ray.cli.main import whole_parser
from kosbert_ray.cli.reference import option_help, pages
from kosbert_ray.config import JobConfig
from kosbert_ray.settings import describe


@pytest.mark.parametrize("name", ["options.md", "cli.md"])
def test_a_generated_page_is_that_of_the_code(name: str) -> None:
    page = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert page == pages()[name], "run make docs-generate"


def test_pages_name_every_option_and_every_command() -> None:
    written = pages()
    assert not [option.name for option in describe(JobConfig) if f"| `{option.name}` |" not in written["options.md"]]
    (commands,) = (action.choices for action in whole_parser()._actions if isinstance(action.choices, dict))
    assert not [name for name in commands if f"## {name}\n" not in written["cli.md"]]


def test_a_flag_has_the_description_of_the_option_that_it_sets(capsys: pytest.CaptureFixture[str]) -> None:
    descriptions = {option.name: option.description for option in describe(JobConfig)}
    for command in ("embed", "plan", "submit", "doctor", "init"):
        with pytest.raises(SystemExit):
            whole_parser().parse_args([command, "--help"])
        shown = "".join(capsys.readouterr().out.split())  # lines break at hyphens, too
        for name in ("input.path", "input.keep", "model.name"):
            assert f"{descriptions[name]} ({name})".replace(" ", "") in shown
        assert "{input" not in shown


def test_help_texts_of_flags_are_those_of_the_options() -> None:
    written = (ROOT / "kosbert_ray" / "cli" / "option_help.py").read_text("utf-8")
    assert written == option_help(), "run make docs-generate"


@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--help"]])
def test_help_does_not_load_pydantic(arguments: list[str]) -> None:
    code = f"import sys\nfrom kosbert_ray.cli.main import main\ntry: main({arguments})\n"
    code += "except SystemExit: print({*sys.modules} & {'pydantic'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("set()\n")
