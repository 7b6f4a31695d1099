"""Option sections, and the files and settings that fill them.

Options come from a YAML file, ``--set`` and the command line, and are validated before anything runs; an unknown key is
refused with the nearest valid name. A section states all there is to know about an option once: name, type, default,
description, and whether its value may be shown (:func:`describe`).
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kosbert_ray.errors import UsageError, first_line
from kosbert_ray.units import alternatives, parse_bytes, parse_seconds

VARIABLE = re.compile(r"\$\{(\w+)\}")
HIDDEN = "the given value"  # in place of a value that is not shown
SCALARS = {bool: "true or false", int: "integer", float: "number", str: "text", SecretStr: "secret", dict: "mapping"}

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Private:
    """Marks an option that is no secret but may contain one: messages and ``repr`` leave its value out.

    Attributes:
        recorded: it is still written to job.json and the run records.
    """

    recorded: bool = False


@dataclass(frozen=True)
class InWords:
    """Names an option's type for people, where its annotation reads badly."""

    words: str


class Section(BaseModel):
    """A section of a file of options: its keys are known, and its values do not change."""

    # An input may be a secret, so pydantic's own error text never shows it.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # Values of a file that have variables or begin with ~, by dotted name: as written, and as they are here.
    _written: dict[str, tuple[str, str]] = PrivateAttr(default_factory=dict)

    def as_written(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Copies a tree of these options, with variables and ``~`` as they are in the file that the options come from."""
        found = copy.deepcopy(dict(tree))
        for name, (text, value) in self._written.items():
            section, key = _around(found, name)
            if section.get(key) == value:
                section[key] = text
        return found

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return ((name, value) for name, value in super().__repr_args__() if name not in fields or not _hidden(fields[name]))


@dataclass(frozen=True)
class Option:
    """One option of a section.

    Attributes:
        name: dotted name, such as ``encoder.precision``.
        type: type in words.
        choices: accepted values, where they are listed.
        default: default value; None where it depends on something else, as the description says.
        description: one line without a full stop.
        secret: the value is a secret.
        hidden: the value is never shown in messages.
        recorded: the value is written to job.json.
    """

    name: str
    type: str
    choices: tuple[str, ...]
    default: Any
    description: str
    secret: bool
    hidden: bool
    recorded: bool


@cache
def describe(model: type[BaseModel], before: str = "") -> tuple[Option, ...]:
    """All options of a model, in its order.

    Args:
        model: a section, which may have sections in it.
        before: prefix of the names.
    """
    found: list[Option] = []
    for name, field in model.model_fields.items():
        if section := section_of(field):
            found += describe(section, f"{before}{name}.")
            continue
        found.append(
            Option(
                name=before + name,
                type=_in_words(field.annotation, field.metadata),
                choices=_choices(field.annotation),
                default=None if field.is_required() else field.get_default(call_default_factory=True),
                description=field.description or "",
                secret=_secret(field),
                hidden=_hidden(field),
                recorded=not _hidden(field) or any(mark.recorded for mark in _private(field)),
            )
        )
    return tuple(found)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def unrecorded(model: type[BaseModel]) -> dict[str, Any]:
    """The options that are kept out of job.json, as ``model_dump(exclude=…)`` takes them."""
    excluded: dict[str, Any] = {}
    for option in describe(model):
        if not option.recorded:
            _put(excluded, option.name, True)
    return excluded


def secrets_in(settings: BaseModel) -> list[str]:
    """Dotted names of the secrets that are set."""
    return [option.name for option in describe(type(settings)) if option.secret and _get(settings, option.name)]


def _get(settings: Any, name: str) -> Any:
    for key in name.split("."):
        settings = getattr(settings, key)
    return settings


def _private(field: FieldInfo) -> list[Private]:
    return [mark for mark in field.metadata if isinstance(mark, Private)]


def _secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr or SecretStr in get_args(field.annotation)


def _hidden(field: FieldInfo) -> bool:
    return _secret(field) or bool(_private(field))


def _in_words(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words: ``integer``, ``list of text``, ``auto, cuda or cpu``."""
    if named := next((mark.words for mark in metadata if isinstance(mark, InWords)), None):
        return named
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(arguments[0], arguments[1:])
    if origin is Literal:
        return alternatives(map(str, arguments))
    if origin in (Union, UnionType):
        return alternatives(_in_words(one) for one in arguments if one is not NoneType)
    if origin is tuple:
        return f"list of {_in_words(arguments[0])}"
    return SCALARS.get(origin or kind, "mapping")


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return next((found for inner in get_args(kind) if (found := _choices(inner))), ())


def _expand_path(value: Any) -> Any:
    """Accepts a path object, and ``~`` for the home folder as a shell does."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def split_names(value: Any) -> Any:
    """Accepts ``id,title`` and ``id, title`` for ``[id, title]``. Spaces that are not beside a comma belong to a name."""
    return [name for name in COMMA.split(value) if name] if isinstance(value, str) else value


COMMA = re.compile(r"\s*,\s*")
NUMBER_OR_TEXT = {"type": ["number", "string"]}
Size = Annotated[
    int, BeforeValidator(parse_bytes), Field(gt=0), InWords("bytes, such as 32MiB"), WithJsonSchema(NUMBER_OR_TEXT)
]
Seconds = Annotated[
    float, BeforeValidator(parse_seconds), InWords("seconds, or a time such as 5m"), WithJsonSchema(NUMBER_OR_TEXT)
]
Address = Annotated[str, BeforeValidator(_expand_path), InWords("path or URL")]
Names = Annotated[tuple[str, ...], BeforeValidator(split_names), InWords("list of names")]


def load_settings(
    model: type[Settings],
    source: str | Mapping[str, Any] | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    retired: Mapping[str, str] | None = None,
    short: Mapping[str, str] | None = None,
    expand: bool = True,
) -> Settings:
    """Loads options from a YAML file or its tree, then ``--set``, then the command line; later sources win.

    Args:
        model: the sections to fill.
        source: path of a YAML file, or the tree one would contain; None for the defaults.
        settings: ``section.key=value``, with the value in YAML.
        overrides: values by dotted name, from the command line.
        defaults: a tree of values that replace the model's defaults.
        retired: options of earlier versions by dotted name, each with a notice: they are accepted and ignored.
        short: sections for which a text may stand, each with the option that the text sets.
        expand: whether to replace ``${NAME}`` in a file by the environment variable.

    Raises:
        UsageError: the file cannot be read, or options are unknown or invalid: a line for each of them.
    """
    lines: dict[str, int] = {}
    written: dict[str, tuple[str, str]] = {}
    if isinstance(source, str) and source:
        tree, lines = _read(model, source)
    else:
        tree = copy.deepcopy(dict(source or {}))
    for section, key in (short or {}).items():
        if isinstance(value := tree.get(section), str):
            tree[section] = {key: value}
    if lines:
        tree = _expanded(tree, written, os.environ if expand else None, str(source), lines)
    tree = merged(without(defaults or {}, retired or ()), tree)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            shown = re.match(r"[\w.]*", setting)  # only the name: the rest may be a secret
            raise UsageError(f"--set {shown[0] if shown else ''}: write it as section.key=value")
        try:
            _put(tree, name.strip(), yaml.safe_load(value))
        except yaml.YAMLError:  # whose text quotes the value
            raise UsageError(f"--set {name.strip()}: the value is not YAML") from None
    for name, value in (overrides or {}).items():
        _put(tree, name, value)
    known = without(tree, retired or ())
    for name, remark in (retired or {}).items():
        if without(tree, (name,)) != tree:
            log.warning("%s %s", name, remark)
    try:
        found = model.model_validate(known)
        if isinstance(found, Section):
            found._written = written
        return found
    except ValidationError as error:
        where = source if isinstance(source, str) and source else "config"
        mistakes = []
        for name, text in _mistakes(model, error).items():
            at = next((lines[part] for part in _upward(name) if part in lines), None)
            mistakes.append((at or 0, f"{where}{f':{at}' if at else ''}: {text}"))
        raise UsageError(*(text for _, text in sorted(mistakes))) from error


def _expanded(
    tree: Mapping[str, Any],
    written: dict[str, tuple[str, str]],
    variables: Mapping[str, str] | None,
    path: str,
    lines: Mapping[str, int],
    before: str = "",
) -> dict[str, Any]:
    """Replaces ``${NAME}`` in a file's texts.

    Args:
        tree: the file's options.
        written: receives, for each text that is another on this machine, both.
        variables: values by name; None to leave the texts as they are.
        path: the file.
        lines: line of each option in it.
        before: prefix of the names.

    Raises:
        UsageError: a variable is not set.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}{key}"

        def variable(match: re.Match[str], name: str = name) -> str:
            if variables is None:
                return match[0]
            if match[1] not in variables:
                at = next((f":{lines[part]}" for part in _upward(name) if part in lines), "")
                raise UsageError(f"{path}{at}: {name}: the variable {match[1]} is not set")
            return variables[match[1]]

        if isinstance(value, dict):
            value = _expanded(value, written, variables, path, lines, f"{name}.")
        elif isinstance(value, str):
            text, value = value, VARIABLE.sub(variable, value)
            if text != value or value.startswith("~"):
                written[name] = (text, os.path.expanduser(value) if value.startswith("~") else value)
        found[key] = value
    return found


def with_variables(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a tree of options, replacing ``${NAME}`` in its texts by the variable where it is set."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            value = with_variables(value)
        elif isinstance(value, str):
            value = VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value)
        found[key] = value
    return found


def without(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Copies a tree of options, leaving out these dotted names."""
    left = copy.deepcopy(dict(tree))
    for name in names:
        section, key = _around(left, name)
        section.pop(key, None)
    return left


def _around(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section of a tree in which a dotted name is, and its key there; an empty section if there is none."""
    *sections, key = name.split(".")
    inner: Any = tree
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    return (inner if isinstance(inner, dict) else {}), key


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two trees; values of ``above`` win."""
    both = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            both[name] = merged(below[name], above[name])
    return both


def _read(model: type[BaseModel], path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's options, and the line of each by dotted name."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text) or {}
        found = list(_lines(yaml.compose(text, yaml.SafeLoader)))
        lines = dict(found)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    except RecursionError:
        raise UsageError(f"{path}: an alias (*name) contains itself") from None
    except ValueError as error:  # such as a date that does not exist
        raise UsageError(f"{path}: {first_line(error)}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML ({_where(error)})") from None  # its text quotes the lines around it
    try:
        json.dumps(tree, default=str, skipkeys=True)
    except ValueError:
        raise UsageError(f"{path}: an alias (*name) contains itself") from None
    if twice := next((name for name, count in Counter(name for name, _ in found).items() if count > 1), None):
        where = " and ".join(str(line) for name, line in found if name == twice)
        raise UsageError(f"{path}: {twice} is set twice, in lines {where}")
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a job file is a mapping of sections such as {', '.join(list(model.model_fields)[:3])}")
    return tree, lines


def _lines(node: yaml.Node | None, before: str = "") -> Iterator[tuple[str, int]]:
    """Dotted name and line of each key of a YAML mapping."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{before}{key.value}"
        yield name, key.start_mark.line + 1
        yield from _lines(value, f"{name}.")


def _upward(name: str) -> Iterator[str]:
    """A dotted name, and those of the sections around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _where(error: yaml.YAMLError) -> str:
    """Describes a YAML error and its place, without the surrounding lines: they may contain a secret."""
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


def _mistakes(model: type[BaseModel], error: ValidationError) -> dict[str, str]:
    """One line for each wrong option, by its dotted name; several types of one option fail together."""
    found: dict[str, str] = {}
    for problem in error.errors():
        path = [str(part) for part in problem["loc"] if not str(part).startswith(("int", "tuple", "constrained"))]
        found.setdefault(".".join(path) or "job", _explain(model, problem, path))
    return found


def _explain(model: type[BaseModel], problem: ErrorDetails, path: list[str]) -> str:
    """Turns one of pydantic's errors into a line with the option's dotted name."""
    name = ".".join(path) or "job"
    if problem["type"] == "extra_forbidden":
        known = _names_of(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else f"known are {', '.join(known)}"
        return f"unknown option {name}; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # raised by a section; for a whole section it starts with the option's name
        section = isinstance(problem["input"], dict)
        return message if not path else f"{name}.{message}" if section else f"{name}: {message}"
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "is a section, with options of its own"
    shown = HIDDEN if _may_contain_secret(model, name) else shown_value(problem["input"])
    return f"{name}: {message[0].lower() + message[1:]}, not {shown}"


def _may_contain_secret(model: type[BaseModel], name: str) -> bool:
    """True for hidden options, for values inside one, and for sections that have one."""
    hidden = [option.name for option in describe(model) if option.hidden]
    return any(f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in hidden)


def set_argument(name: str, text: str) -> str:
    """Returns the argument that sets an option to a text, quoted for YAML and for a shell."""
    return f"--set {shlex.quote(f'{name}={json.dumps(text, ensure_ascii=False)}')}"


def shown_value(value: Any) -> str:
    """Formats an invalid value for an error message, unless it is long or a mapping."""
    text = repr(value)
    return text if len(text) < 60 and not isinstance(value, dict | BaseModel) else HIDDEN


def _names_of(model: type[BaseModel], path: list[str]) -> list[str]:
    fields: dict[str, FieldInfo] = model.model_fields
    for name in path:
        section = section_of(fields[name]) if name in fields else None
        fields = section.model_fields if section else {}
    return list(fields)
