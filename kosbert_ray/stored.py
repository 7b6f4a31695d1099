"""An output's memory of its job: job.json read by any later version, and merged with what a command says.

``job.json`` is written once. Where the user says nothing, what it holds applies instead of today's defaults, so that a new
default never turns a scheduled job into another one.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.settings import merged
from kosbert_ray.shards.shard import read_schema
from kosbert_ray.storage import Storage

Tree = dict[str, Any]

# What a job is, by section: None for the whole section, else the keys that count.
REMEMBERED: dict[str, tuple[str, ...] | None] = {
    "model": None,
    "input": None,
    "output": None,
    "slice": None,
    "encoder": ("precision", "engine"),
    "long_text": None,
    "chunk": None,
    "dedup": None,
    "on_bad_row": None,
}
# Of these sections, what may differ from run to run.
FORGOTTEN = {"input": ("path",), "output": ("path", "removed_inputs")}

REMEDY = "delete the file and run kosbert-ray embed with the options of the first run, which writes it again"


def _drop_allow_pickle(tree: Tree) -> None:
    if isinstance(model := tree.get("model"), dict):
        model.pop("allow_pickle", None)


# Changes of the options since 0.1.0, oldest first: each turns a stored tree into what the next version would have stored.
MIGRATIONS: tuple[Callable[[Tree], None], ...] = (_drop_allow_pickle,)


def stored_config(job: Mapping[str, Any], where: str) -> JobConfig:
    """The config in a job.json of any version.

    Keys that are unknown here, as those of a later version, are left out.

    Args:
        job: the content of job.json.
        where: its address, for messages.

    Raises:
        InputError: it holds no config, or a value that cannot be.
    """
    tree = copy.deepcopy(job.get("config"))
    if not isinstance(tree, dict):
        raise InputError(f"{where}: holds no config; is it a job of kosbert-ray?")
    for migrate in MIGRATIONS:
        migrate(tree)
    try:
        return JobConfig.model_validate(_known(JobConfig, tree))
    except ValidationError as error:
        setting = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{where}: {setting} cannot be used ({first_line_of(error)}); {REMEDY}") from error


def _known(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    found: Tree = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        section = field.annotation
        if isinstance(value, dict) and isinstance(section, type) and issubclass(section, BaseModel):
            value = _known(section, value)
        found[key] = value
    return found


def said(config: JobConfig) -> Tree:
    """What the user has set, as a tree; defaults are not in it."""
    return config.model_dump(exclude_unset=True)


def dotted(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """``section.key`` and value of each setting in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and before + key in JobConfig.model_fields:
            yield from dotted(value, f"{before}{key}.")
        else:
            yield before + key, value


def resumed(config: JobConfig, job: Mapping[str, Any], where: str) -> JobConfig:
    """The job of an output that is there, with what this command says over it.

    Args:
        config: what the command says; its defaults count for nothing where job.json has a value.
        job: the content of job.json.
        where: the output's address.

    Returns:
        The config to run by: options that make up the job come from job.json unless they were said; all others are
        ``config``'s. Prompt and length are those that the first run settled on.

    Raises:
        UsageError: what was said cannot go with what is stored.
    """
    mine = said(config)
    tree = merged(_job_of(stored_config(job, f"{where}/_kosbert/job.json"), job, mine), mine)
    try:
        return JobConfig.model_validate(tree)
    except ValidationError as error:
        raise UsageError(
            f"{where}: {first_line_of(error)}, with the settings of the job that made this output; repeat its options, or "
            "choose another output"
        ) from error


def first_line_of(error: ValidationError) -> str:
    """Pydantic's first complaint, without its address in pydantic's own terms."""
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def _job_of(stored: JobConfig, job: Mapping[str, Any], mine: Mapping[str, Any]) -> Tree:
    """What an output remembers, as a tree."""
    tree: Tree = {}
    for section, keys in REMEMBERED.items():
        value = getattr(stored, section)
        if isinstance(value, BaseModel):
            value = value.model_dump(include=set(keys) if keys else None, exclude=set(FORGOTTEN.get(section, ())))
        tree[section] = value
    fingerprint = job.get("fingerprint", {})
    model = mine.get("model", {})
    if "prompt" in fingerprint and not {"prompt", "prompt_name"} & model.keys():
        tree["model"] |= {"prompt": fingerprint["prompt"], "prompt_name": None}
    if fingerprint.get("max_seq_length"):
        tree["model"]["max_seq_length"] = fingerprint["max_seq_length"]
    return tree


def taken(config: JobConfig, job: Mapping[str, Any], where: str) -> str:
    """Settings that a run takes from job.json because nobody said them, where they are not today's defaults.

    Returns:
        ``section.key=value`` with commas between; empty if there are none.
    """
    stored = stored_config(job, where)
    mine = {name for name, _ in dotted(said(config))}
    defaults = dict(dotted(JobConfig().model_dump()))
    found = []
    for name, value in dotted(stored.model_dump()):
        section, _, key = name.partition(".")
        keys = REMEMBERED.get(section, ())
        counts = section in REMEMBERED and (keys is None or key in keys) and key not in FORGOTTEN.get(section, ())
        if counts and name not in mine and value != defaults.get(name):
            found.append(f"{name}={_shown(value)}")
    return ", ".join(found)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- types of the kept columns ---------------------------------------------------------------------------------------


def schema_entry(keep: pa.Schema) -> Tree:
    """The kept columns' types for job.json: Arrow's IPC form, which any type survives."""
    return {"schema": base64.b64encode(keep.serialize().to_pybytes()).decode("ascii")}


def settled_types(job: Mapping[str, Any], output: Storage, shards: Mapping[str, int]) -> pa.Schema | None:
    """Returns the kept columns' types as the output's first run settled them, or None if they are unknown.

    Version 0.1.0 stored their names only, so its types are those of a shard.
    """
    content = job.get("schema")
    if isinstance(content, str):
        try:
            return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content)))
        except (ValueError, pa.ArrowException, OSError) as error:
            where = output.url("_kosbert/job.json")
            raise InputError(f"{where}: the types of the kept columns cannot be read; {REMEDY}") from error
    kept = [str(column).partition(": ")[0] for column in job.get("fingerprint", {}).get("keep", ())]
    for name in shards:
        schema = read_schema(output, name)
        if schema is not None and {*kept} <= {*schema.names}:
            return pa.schema([schema.field(column) for column in kept])
    return None
