"""Converts pickled weights (``pytorch_model.bin``) to safetensors.

A pickle is a program. torch's restricted unpickler only rebuilds tensors, and files that need more are refused. All
processes load the converted copy, so the pickle is opened once.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import weight_names

UNSAFE = re.compile(r"GLOBAL (\S+)")  # in torch's error: the function that the pickle calls
HEADS = ("cls.", "lm_head.", "predictions.", "generator_lm_head.")  # of masked or causal language models: never loaded


def copy_model(folder: Path, names: list[str], target: Path) -> None:
    """Copies a model's files into an empty folder, and converts pickled weights to safetensors.

    Args:
        folder: the model.
        names: its files, relative to ``folder``.
        target: the empty folder.

    Raises:
        ModelError: pickled weights hold more than tensors or are broken.
        OSError: the target cannot be written to.
    """
    for inner in sorted({name.rpartition("/")[0] for name in names}):
        (target / inner).mkdir(parents=True, exist_ok=True)
        here = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == inner]
        weights = [name for name in weight_names(here) if name.endswith(".bin")]
        if weights:
            _convert(folder / inner, weights, target / inner)
        for name in here:
            if name.endswith(".pt"):
                _convert_file(folder / inner / name, (target / inner / name).with_suffix(".safetensors"))
            elif not name.endswith((".bin", ".bin.index.json")):
                shutil.copyfile(folder / inner / name, target / inner / name)


def _convert(folder: Path, names: list[str], target: Path) -> None:
    """Writes pickled weights as safetensors, shard by shard."""
    where: dict[str, str] = {}
    size = 0
    for name in names:
        new = name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        tensors = _convert_file(folder / name, target / new)
        where |= dict.fromkeys(tensors, new)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1 or "-of-" in names[0]:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, sort_keys=True), "utf-8")


def _convert_file(path: Path, target: Path) -> dict[str, Any]:
    """Writes one file of pickled weights as safetensors; returns its tensors."""
    from safetensors.torch import save_file

    tensors = _unshared(read_tensors(path))
    save_file(tensors, target, {"format": "pt"})
    return tensors


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a pickled state dict with torch's restricted unpickler, also in the format before torch 1.6.

    Raises:
        ModelError: the file holds anything else, or is broken.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = UNSAFE.search(str(error))
        if found is None:
            raise ModelError(f"{path}: not a file of weights; save the model as safetensors") from error
        raise ModelError(
            f"{path}: holds more than tensors (it calls {found[1]}) and was not loaded; save the model as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError) as error:
        raise ModelError(f"{path}: broken or cut-short weights ({first_line(error)})") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided for value in state.values()
    ):
        raise ModelError(f"{path}: not a mapping of names to dense tensors; save the model as safetensors")
    return {str(name): value.detach() for name, value in state.items()}


def _unshared(tensors: dict[str, Any]) -> dict[str, Any]:
    """Returns tensors that share no memory, as safetensors requires.

    Tied weights share memory. The copy in a language model's head, which no embedding model loads, is left out. All others
    are written under each of their names, because architectures differ in the name they load.
    """
    users: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        users.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    found = {}
    for names in users.values():
        kept = [name for name in names if not name.startswith(HEADS)] or names
        for name in kept:
            tensor = tensors[name].contiguous()
            alone = len(kept) == 1 and tensor.untyped_storage().nbytes() == tensor.nbytes
            found[name] = tensor if alone else tensor.clone()
    return dict(sorted(found.items()))
