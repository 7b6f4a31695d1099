"""Merges a PEFT adapter (LoRA and its relatives) into its base model, so that it is loaded like any other model.

Source: ``peft`` (https://github.com/huggingface/peft), which does the merging.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kosbert_ray.errors import KosbertError, ModelError, first_line
from kosbert_ray.model import files
from kosbert_ray.model.pickled import copy_model, read_tensors
from kosbert_ray.model.source import Fetched, ModelSource, cache_entry, fetch, fill_once, state_of
from kosbert_ray.model.support import NATIVE_CODE

ADAPTER = "adapter_config.json"
MERGE = "adapter 1"  # part of a merged copy's name; raise the number when the merge changes
RECORD = "merged.json"  # in a merged copy: the digest of the weights that it was made from
# Keys of adapter_config.json that say where the base model is, and not what the adapter does.
PLACE = ("base_model_name_or_path", "revision")
# Up to this size of its base in fp32, a merged model is kept in fp32, which adds no rounding; else in its base's type.
EXACT_BYTES = 4 * 2**30
REASON_LETTERS = 200  # of peft's message, whose first line names no weights

log = logging.getLogger(__name__)


def merge_adapter(fetched: Fetched, source: ModelSource) -> Fetched:
    """Returns a copy in the cache of an adapter merged into its base model, or ``fetched`` if it is no adapter.

    Args:
        fetched: a model's folder.
        source: where the model is from; its ``commits`` pin the base model.

    Raises:
        ModelError: peft is not installed, the base model cannot be fetched, or the adapter does not fit it.
        StorageError: the object store refuses access.
    """
    folder = fetched.folder
    folders = ("", *files.module_folders(files.read_modules_list(folder)))
    inner = next((inner for inner in folders if (folder / inner / ADAPTER).is_file()), None)
    if inner is None:
        return fetched
    adapter = folder / inner
    if files.weight_names(path.name for path in adapter.iterdir()):
        raise ModelError(
            f"{adapter / ADAPTER}: an adapter beside complete weights; delete {ADAPTER} if the adapter is merged into "
            "them, else delete the weights"
        )
    config = files.read_object(adapter / ADAPTER)
    name, base = _base(adapter, config, source)
    weights = _adapter_weights(adapter)
    told = json.dumps({key: value for key, value in config.items() if key not in PLACE}, sort_keys=True)
    content = f"{files.sha256(adapter, [weights])} {told}"
    state = [fetched.commit or state_of(folder), base.commit or state_of(base.folder)]
    target = cache_entry("models", [MERGE, content, *state])

    def fill(partial: Path) -> None:
        _require_peft(adapter)
        log.info(f"{source.name}: merging the adapter into {name} (once)")
        base_weights = [*files.weight_paths(base.folder), base.folder / "config.json"]
        files.require_content(base_weights)
        made_of = hashlib.sha256(f"{content} {files.sha256(base.folder, base_weights)}".encode()).hexdigest()
        _copy(folder, inner, base.folder, partial)
        _merge(adapter, config, weights, base.folder, partial / inner)
        (partial / RECORD).write_text(json.dumps({"weights": made_of}), "utf-8")

    fill_once(target, fill)
    return fetched.into(
        target,
        {name: base.commit} if base.commit else {},
        f"{source.name} is an adapter, merged into {name}",
        made_of=str(files.read_object(target / RECORD)["weights"]),
    )


def _base(adapter: Path, config: dict[str, Any], source: ModelSource) -> tuple[str, Fetched]:
    """Returns the name and the folder of an adapter's base model."""
    path, name = adapter / ADAPTER, config.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ModelError(f"{path}: does not name its base model (base_model_name_or_path)")
    try:
        base = fetch(replace(source, name=name, revision=config.get("revision"), allow_remote_code=False))
        settings = files.read_object(base.folder / "config.json")
    except KosbertError as error:
        raise type(error)(f"{path}: its base model cannot be found ({error}); correct base_model_name_or_path") from error
    if settings.get("auto_map") and settings.get("model_type") not in NATIVE_CODE:
        raise ModelError(f"{path}: its base model {name} has Python code of its own, which is not supported for adapters")
    return name, base


def _adapter_weights(adapter: Path) -> Path:
    """Returns the file of an adapter's weights."""
    names = files.adapter_weight_names(path.name for path in adapter.iterdir())
    if not names:
        raise ModelError(f"{adapter}: no weights of the adapter in it ({' or '.join(files.ADAPTER_WEIGHTS)})")
    files.require_content([adapter / names[0]])
    return adapter / names[0]


def _require_peft(adapter: Path) -> None:
    if find_spec("peft") is None:
        raise ModelError(f"{adapter / ADAPTER}: the model is an adapter; to merge it, pip install 'kosbert-ray[peft]'")


def _copy(folder: Path, inner: str, base: Path, target: Path) -> None:
    """Copies what the merged model takes from its adapter's folder, and config and, if need be, tokenizer from its base."""
    for name in files.files_in(folder, code=False):
        if Path(name).name not in (ADAPTER, *files.ADAPTER_WEIGHTS):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    merged = target / inner
    merged.mkdir(parents=True, exist_ok=True)
    if not any((merged / name).exists() for name in files.VOCABULARIES) and not any(merged.glob("*.model")):
        for path in files.tokenizer_paths(base):
            shutil.copyfile(path, merged / path.name)


def _merge(adapter: Path, settings: dict[str, Any], weights: Path, base: Path, target: Path) -> None:
    """Writes the merged weights and the base's config.

    Args:
        adapter: the adapter's folder.
        settings: the content of its config.
        weights: the file of its weights.
        base: the base model's folder.
        target: the folder to write to.
    """
    import torch
    import transformers
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    names = _tensor_names(weights)
    problems = []
    try:
        config = _read_config(adapter, settings)
        base = _without_pickles(base, target)
        # An adapter of a language model has the names of its weights, not those of its body.
        for kind in (transformers.AutoModel, transformers.AutoModelForCausalLM):
            model: Any = kind.from_pretrained(base, dtype="auto", local_files_only=True, use_safetensors=True)
            if 4 * sum(weight.numel() for weight in model.parameters()) <= EXACT_BYTES:
                model = model.to(torch.float32)
            merged, problem = _merged(model, adapter, copy.deepcopy(config), names)
            problems.append(problem)
            if merged is not None:
                merged.save_pretrained(target)
                shutil.copyfile(base / "config.json", target / "config.json")
                return
    except (KosbertError, OSError):
        raise
    except Exception as error:  # peft raises many types
        raise ModelError(
            f"{adapter}: an adapter of type {settings.get('peft_type')} cannot be merged into its base model "
            f"({first_line(error)})"
        ) from error
    finally:
        shutil.rmtree(target / "base", ignore_errors=True)
    raise ModelError(f"{adapter}: does not fit its base model ({problems[0]})")


def _without_pickles(base: Path, target: Path) -> Path:
    """Returns the base model with safetensors only: a temporary copy if it has pickles."""
    if files.weight_paths(base)[0].suffix != ".bin":
        return base
    (target / "base").mkdir()
    copy_model(base, files.files_in(base, code=False), target / "base")
    return target / "base"


def _read_config(adapter: Path, settings: dict[str, Any]) -> Any:
    """Returns peft's config of an adapter that can be merged."""
    from peft import PeftConfig

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(str(adapter))
    told = " ".join(str(item.message) for item in caught if "Unexpected keyword" in str(item.message))
    if unknown := [name for name in re.findall(r"'(\w+)'", told) if settings.get(name)]:  # off by default, if newer
        raise ModelError(
            f"{adapter / ADAPTER}: the installed peft does not know {', '.join(unknown)}; pip install --upgrade peft"
        )
    if config.is_prompt_learning:
        raise ValueError("it adds tokens instead of weights")
    config.task_type = None  # the wrapper of a task asks for methods that only its models have
    return config


def _merged(model: Any, adapter: Path, config: Any, names: set[str]) -> tuple[Any, str]:
    """Returns the model with the adapter merged into it, or None and why the adapter does not fit."""
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that do not match are looked at below
        try:
            whole: Any = PeftModel.from_pretrained(model, str(adapter), config=config)
        except (ValueError, RuntimeError, KeyError) as error:
            return None, " ".join(str(error).split())[:REASON_LETTERS]
        own = set(get_peft_model_state_dict(whole, save_embedding_layers=False))
        there = own | {name.replace(".default", "") for name in whole.state_dict()}
    for found in (names - there, own - names):
        if found:
            return None, f"{len(found)} weights, such as {min(found)}"
    return whole.merge_and_unload(safe_merge=True), ""


def _tensor_names(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".bin":
        return set(read_tensors(path))
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
