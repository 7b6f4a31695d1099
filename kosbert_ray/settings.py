"""Files of options: YAML, then ``--set`` settings, then the command line's own, checked against a pydantic model.

Everything is validated before anything runs; an unknown key is refused with the nearest right name.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from kosbert_ray.errors import UsageError

# Options whose value is never shown: it is a secret, or may hold one.
HIDDEN = ("access_key_id", "secret_access_key", "session_token", "endpoint_url", "on_finish")

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """A section of a file of options: its keys are known, and its values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_settings(
    model: type[Settings],
    source: str | Mapping[str, Any] | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    retired: Mapping[str, str] | None = None,
) -> Settings:
    """A YAML file or its tree, then ``--set`` settings, then options of the command line, each over the one before.

    Args:
        model: what the options are.
        source: a YAML file, or what one would hold; None for the defaults.
        settings: ``section.key=value``, the value read as YAML.
        overrides: values by dotted name.
        defaults: a tree of what counts where none of these says anything.
        retired: options of earlier versions by dotted name, and what to say of them: they are accepted and ignored.

    Raises:
        UsageError: the file cannot be read, or an option is unknown or wrong.
    """
    tree = _read(model, source) if isinstance(source, str) and source else copy.deepcopy(dict(source or {}))
    tree = merged(without(defaults or {}, retired or ()), tree)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            shown = re.match(r"[\w.]*", setting)  # no more of it: it may be a secret
            raise UsageError(f"--set {shown[0] if shown else ''}: write it as section.key=value")
        try:
            _put(tree, name.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {name.strip()}: the value is not YAML") from error
    for name, value in (overrides or {}).items():
        _put(tree, name, value)
    known = without(tree, retired or ())
    for name, remark in (retired or {}).items():
        if without(tree, (name,)) != tree:
            log.warning("%s %s", name, remark)
    try:
        return model.model_validate(known)
    except ValidationError as error:
        where = source if isinstance(source, str) and source else "config"
        raise UsageError(f"{where}: {_explain(model, error)}") from error


def without(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A copy of a tree of options that lacks those of these dotted names."""
    left = copy.deepcopy(dict(tree))
    for name in names:
        *sections, key = name.split(".")
        inner: Any = left
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(key, None)
    return left


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one: what ``above`` says, and what only ``below`` does."""
    both = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            both[name] = merged(below[name], above[name])
    return both


def _read(model: type[BaseModel], path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML ({_where(error)})") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a job file is a mapping of sections such as {', '.join(list(model.model_fields)[:3])}")
    return tree


def _where(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the lines around it: they may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    at = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or type(error).__name__}{at}"


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {name}: {section} is not a section")
    tree[key] = value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Pydantic's first complaint as one line with the option's dotted name."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("int", "tuple", "constrained"))]
    name = ".".join(path) or "job"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _names_of(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else f"known are {', '.join(known)}"
        return f"unknown option {name}; {hint}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # our own words; those on a whole section begin with the option's name
        section = isinstance(problem["input"], dict)
        return f"{message if not path else f'{name}.{message}' if section else f'{name}: {message}'}{more}"
    shown = "what is there" if path and path[-1] in HIDDEN else shown_value(problem["input"])
    return f"{name}: {message[0].lower() + message[1:]}, not {shown}{more}"


def shown_value(value: Any) -> str:
    """A wrong value as an error line shows it: short, or not at all."""
    text = repr(value)
    return text if len(text) < 60 and not isinstance(value, dict | BaseModel) else "what is there"


def _names_of(model: type[BaseModel], path: list[str]) -> list[str]:
    fields: dict[str, FieldInfo] = model.model_fields
    for section in path:
        annotation = fields[section].annotation if section in fields else None
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
    return list(fields)
