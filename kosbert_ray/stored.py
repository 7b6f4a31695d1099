"""The job stored in an output: job.json, read by any later version and merged with the options of a command.

``job.json`` is written once. Options that a command does not set come from there instead of from today's defaults, so a new
default never turns a scheduled job into another job.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from kosbert_ray.config import JobConfig
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.model.lengths import NO_LIMIT
from kosbert_ray.model.options import PROMPT_OPTIONS
from kosbert_ray.settings import merged, section_of, with_variables
from kosbert_ray.shards.shard import read_schema
from kosbert_ray.storage import Storage

Tree = dict[str, Any]

# The options that define a job, by section: None for the whole section, otherwise its keys.
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
# Keys of these sections that may differ from run to run.
FORGOTTEN = {"model": ("mirror",), "input": ("path",), "output": ("path", "removed_inputs")}

CHOSEN = ("slice.target_bytes",)  # options whose value is chosen for the user and not worth telling

REMEDY = "delete the file and run kosbert-ray embed with the options of the first run, which writes it again"


def _drop_allow_pickle(tree: Tree) -> None:
    if isinstance(model := tree.get("model"), dict):
        model.pop("allow_pickle", None)


def _forget_denied_code(tree: Tree) -> None:
    """False was the default before it came to mean that transformers' own class runs; then there was no model.pooling."""
    model = tree.get("model")
    if isinstance(model, dict) and "pooling" not in model and model.get("allow_remote_code") is False:
        del model["allow_remote_code"]


def _copy_no_text(tree: Tree) -> None:
    """Texts were copied only where ``input.keep`` named them."""
    if isinstance(output := tree.get("output"), dict) and "text" not in (tree.get("input") or {}).get("keep", ()):
        output.setdefault("text", False)


# Changes to the options since 0.1.0, oldest first; each migrates a stored tree to the next version.
MIGRATIONS: tuple[Callable[[Tree], None], ...] = (_drop_allow_pickle, _forget_denied_code, _copy_no_text)


def stored_config(job: Mapping[str, Any], where: str) -> JobConfig:
    """Reads the config in a job.json of any version, ignoring unknown keys such as those of a later version.

    Args:
        job: the content of job.json.
        where: its address, for messages.

    Raises:
        InputError: it has no config, or an invalid value.
    """
    tree = copy.deepcopy(job.get("config"))
    if not isinstance(tree, dict):
        raise InputError(f"{where}: has no config; is it a job of kosbert-ray?")
    for migrate in MIGRATIONS:
        migrate(tree)
    try:
        return JobConfig.model_validate(_known(JobConfig, with_variables(tree)))
    except ValidationError as error:
        setting = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{where}: {setting} cannot be used ({first_line_of(error)}); {REMEDY}") from error


def _known(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    found: Tree = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        if isinstance(value, dict) and (section := section_of(field)):
            value = _known(section, value)
        found[key] = value
    return found


def said(config: JobConfig) -> Tree:
    """The options that the user set, as a tree without defaults."""
    return config.model_dump(exclude_unset=True)


def dotted(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ``section.key`` and value of each option in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and before + key in JobConfig.model_fields:
            yield from dotted(value, f"{before}{key}.")
        else:
            yield before + key, value


def resumed(config: JobConfig, job: Mapping[str, Any], where: str) -> JobConfig:
    """Merges the options of a command over the job of an existing output.

    Args:
        config: the command's options; job.json wins over its defaults.
        job: the content of job.json.
        where: the output's address.

    Returns:
        The config to run: options that define the job come from job.json unless the command sets them, all others from
        ``config``. Prompt and length are those that the first run resolved.

    Raises:
        UsageError: the command's options contradict the stored ones.
    """
    mine = said(config)
    tree = merged(_job_of(stored_config(job, f"{where}/_kosbert/job.json"), job, mine), mine)
    try:
        return JobConfig.model_validate(tree)
    except ValidationError as error:
        raise UsageError(
            f"{where}: {first_line_of(error)} (with the stored settings of this output); repeat the options of its first "
            "run, or choose another output"
        ) from error


def first_line_of(error: ValidationError) -> str:
    """The first message of a validation error."""
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def _job_of(stored: JobConfig, job: Mapping[str, Any], mine: Mapping[str, Any]) -> Tree:
    """The stored options that define the job, as a tree."""
    tree: Tree = {}
    for section, keys in REMEMBERED.items():
        value = getattr(stored, section)
        if isinstance(value, BaseModel):
            value = value.model_dump(include=set(keys) if keys else None, exclude=set(FORGOTTEN.get(section, ())))
        tree[section] = value
    fingerprint = job.get("fingerprint", {})
    model = mine.get("model", {})
    if "prompt" in fingerprint and not model.keys() & {*PROMPT_OPTIONS}:
        tree["model"] |= {"prompt": fingerprint["prompt"], "prompt_name": None}
    if 0 < fingerprint.get("max_seq_length", 0) < NO_LIMIT:
        tree["model"]["max_seq_length"] = fingerprint["max_seq_length"]
    return tree


def taken(config: JobConfig, job: Mapping[str, Any], where: str) -> str:
    """Lists the settings that come from job.json because the command does not set them and that are not defaults.

    Returns:
        ``section.key=value``, comma-separated; empty if there are none.
    """
    stored = stored_config(job, where)
    mine = {name for name, _ in dotted(said(config))}
    defaults = dict(dotted(JobConfig().model_dump()))
    found = []
    for name, value in dotted(stored.model_dump()):
        section, _, key = name.partition(".")
        keys = REMEMBERED.get(section, ())
        counts = section in REMEMBERED and (keys is None or key in keys) and key not in FORGOTTEN.get(section, ())
        if counts and name not in (*mine, *CHOSEN) and value != defaults.get(name):
            found.append(f"{name}={_shown(value)}")
    return ", ".join(found)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- types of the kept columns ---------------------------------------------------------------------------------------


def schema_entry(keep: pa.Schema) -> Tree:
    """The types of the kept columns for job.json, in Arrow's IPC format, which preserves every type."""
    return {"schema": base64.b64encode(keep.serialize().to_pybytes()).decode("ascii")}


def settled_types(job: Mapping[str, Any], output: Storage, shards: Iterable[str]) -> pa.Schema | None:
    """The types of the kept columns that the first run of an output chose; None if they are unknown.

    Version 0.1.0 stored only their names, so its types are read from a shard.
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
