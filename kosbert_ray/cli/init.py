"""``kosbert-ray init``: a commented job file, from answers or options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kosbert_ray.cli.common import Commands
from kosbert_ray.errors import UsageError

QUESTIONS = {
    "input.path": ("What is to be embedded (file, folder, glob, s3:// URL, hub://OWNER/NAME)?", "bundled:everyday"),
    "output.path": ("Where do the vectors go?", "vectors"),
    "model.name": ("With which model?", "jhgan/ko-sbert-sts"),
    "input.text": ('Which column is the text (or several: "{title}\\n{body}")?', "text"),
    "input.keep": ("Which columns are carried through, with commas?", ""),
}


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "init",
        help="write a commented job file to start from",
        description="Writes FILE with all options there are, those you give or answer set, the others commented out. Asks "
        "on a terminal for what is not given.",
    )
    parser.add_argument("file", nargs="?", default="job.yaml", metavar="FILE", help="default: job.yaml")
    for dotted, (question, default) in QUESTIONS.items():
        option = {"input.path": "input", "output.path": "output", "model.name": "model"}.get(
            dotted, dotted.partition(".")[2]
        )
        parser.add_argument(
            f"--{option}", dest=dotted, metavar=option.upper(), help=f"{question} (default: {default or 'none'})"
        )
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    if path.exists() and not arguments.force:
        raise UsageError(f"{path}: is there already; choose another name or --force")
    values = {dotted: value for dotted in QUESTIONS if (value := getattr(arguments, dotted)) is not None}
    if sys.stdin.isatty():
        for dotted, (question, default) in QUESTIONS.items():
            if dotted not in values:
                answer = input(f"{question} [{default}] ").strip()
                values[dotted] = answer or default
    from kosbert_ray.config import load_config
    from kosbert_ray.job_file import job_file

    config = load_config(None, (), {dotted: value for dotted, value in values.items() if value})
    settled: dict[str, Any] = {}
    for dotted in values:
        section, _, key = dotted.partition(".")
        settled[dotted] = getattr(getattr(config, section), key)
    for dotted in ("input.path", "output.path", "model.name"):
        settled.setdefault(dotted, QUESTIONS[dotted][1])
    try:
        path.write_text(job_file(arguments.file, settled), "utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    print(f"written: {path}; now kosbert-ray plan --config {path}, and kosbert-ray embed --config {path}")
    return 0
