"""A job file to start from: every option, with its description and default."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import yaml

from kosbert_ray.config import JobConfig
from kosbert_ray.settings import Option, describe
from kosbert_ray.units import alternatives

SCHEMA_FILE = "kosbert-ray.schema.json"
HEADER = """\
# yaml-language-server: $schema={schema}
# A job of kosbert-ray. Run it with: kosbert-ray embed --config {name}
# Options that are commented out show their defaults; the same names work as --set section.key=value.
# For completion in an editor, run kosbert-ray schema -o {schema} here.
"""


def job_file(name: str, values: Mapping[str, Any]) -> str:
    """Renders a commented YAML job file.

    Args:
        name: file name, for the header.
        values: options to set, by dotted name; the others are written as comments.
    """
    lines = [HEADER.format(name=name, schema=SCHEMA_FILE)]
    for section, options in by_section():
        if section:
            chosen = any(option.name in values for option in options)
            lines.append(f"{'' if chosen else '# '}{section}:")
        lines += [_line(option, values, "  " if section else "") for option in options]
        lines += [""] if section else []
    return "\n".join(lines) + "\n"


def by_section() -> list[tuple[str, list[Option]]]:
    """The job's options by section, those of the job as a whole last, under an empty name."""
    options = sorted(describe(JobConfig), key=lambda option: "." not in option.name)
    return [(name, list(members)) for name, members in groupby(options, lambda option: option.name.rpartition(".")[0])]


def entry(key: str, value: Any) -> str:
    """``key: value`` in YAML, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    line = yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, width=10**6)
    return line.strip().removeprefix("{").removesuffix("}")


def _line(option: Option, values: Mapping[str, Any], indent: str) -> str:
    line = entry(option.name.rpartition(".")[2], values.get(option.name, option.default))
    choices = f" ({alternatives(option.choices)})" if option.choices else ""
    return f"{indent if option.name in values else f'# {indent}'}{line:<34}  # {option.description}{choices}"
