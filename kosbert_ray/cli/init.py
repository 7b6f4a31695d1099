"""``kosbert-ray init``: a commented job file, from answers or options."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from kosbert_ray.cli.common import Commands, write_file
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import UsageError

CONFIGS = Path(__file__).parents[1] / "configs"
# The options that it asks for, and the answer that Return gives.
ASKED = {
    "input.path": "bundled:everyday",
    "output.path": "vectors",
    "model.name": "jhgan/ko-sbert-sts",
    "input.text": "text",
    "input.keep": "",
}
FLAGS = {"input.path": "input", "output.path": "output", "model.name": "model", "input.text": "text", "input.keep": "keep"}

EXAMPLES = (
    ("answer questions", "kosbert-ray init job.yaml"),
    ("start from an example", "kosbert-ray init --example cluster_s3"),
    ("set options without questions", "kosbert-ray init job.yaml --input corpus/ --output vectors/ --keep id"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "init",
        help="write a commented job file to start from",
        description="Writes FILE with every option: those that you set, and the others commented out. On a terminal, asks "
        "for the most important ones.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: job.yaml, or the example's name")
    parser.add_argument("--example", metavar="NAME", help="copy an example instead, such as cluster_s3; list names them")
    for name, flag in FLAGS.items():
        parser.add_argument(f"--{flag}", dest=name, metavar=flag.upper(), help=f"{{{name}}}")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.example:
        return _copy_example(arguments)
    path = _new_file(arguments, "job.yaml")
    from kosbert_ray.cli.job_file import job_file
    from kosbert_ray.config import JobConfig, load_config
    from kosbert_ray.settings import describe

    values = {name: value for name in ASKED if (value := getattr(arguments, name)) is not None}
    if sys.stdin.isatty():
        descriptions = {option.name: option.description for option in describe(JobConfig)}
        for name, default in ASKED.items():
            if name not in values:
                answer = input(f"{name}: {descriptions[name]} [{default}] ").strip()
                values[name] = answer or default
    config = load_config(None, (), {name: value for name, value in values.items() if value})
    chosen: dict[str, Any] = {}
    for name in values:
        section, _, key = name.partition(".")
        chosen[name] = getattr(getattr(config, section), key)
    for name in ("input.path", "output.path", "model.name"):
        chosen.setdefault(name, ASKED[name])
    try:
        path.write_text(job_file(path.name, chosen), "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    print(f"wrote {path}; next: kosbert-ray plan --config {path}, then kosbert-ray embed --config {path}")
    return 0


def _new_file(arguments: argparse.Namespace, default: str) -> Path:
    """The file to write; raises UsageError if it exists and is not to be replaced."""
    path = Path(arguments.file or default)
    if path.exists() and not arguments.force:
        raise UsageError(f"{path}: already exists; choose another name or use --force")
    return path


def _copy_example(arguments: argparse.Namespace) -> int:
    """Copies a file of ``configs/``."""
    if not CONFIGS.is_dir():  # a checkout without symbolic links
        raise UsageError(f"--example: {CONFIGS} is missing here; the examples are in the repository's configs/")
    examples = {path.stem: path for path in sorted(CONFIGS.iterdir()) if path.suffix in (".yaml", ".json")}
    if arguments.example == "list":
        for name, source in examples.items():
            print(f"{name:<26}{_first_sentence(source)}")
        return 0
    if arguments.example not in examples:
        raise UsageError(f"--example {arguments.example}: there are {', '.join(examples)}")
    source = examples[arguments.example]
    path = _new_file(arguments, source.name)
    write_file(str(path), source.read_bytes())
    print(f"wrote {path}; its first lines say how to use it")
    return 0


def _first_sentence(path: Path) -> str:
    """Describes an example by the first sentence of its comment."""
    if path.suffix == ".json":
        return "A dashboard for Grafana."
    comment = " ".join(line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    return f"{re.split(r'[.:] ', comment)[0].rstrip('.:')}."
