"""The files of a model repository that its vectors depend on.

A repository also holds other frameworks' weights, exports, checkpoints and training state. Only the files chosen here
are fetched, copied and hashed, wherever the model lies: on the hub, in an object store or in a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kosbert_ray.errors import ModelError

# Stem and suffix of weights, in the order in which transformers looks for them.
WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))
SETTINGS = (".json", ".txt", ".model")
MODULES = "modules.json"
POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024


def weight_names(names: Iterable[str]) -> list[str]:
    """The weights among the file names of one folder: one file, or its shards; safetensors before pickles."""
    there = set(names)
    for stem, suffix in WEIGHTS:
        if f"{stem}.{suffix}" in there:
            return [f"{stem}.{suffix}"]
        shards = sorted(name for name in there if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name))
        if shards and f"{stem}.{suffix}.index.json" in there:
            return shards
    return []


def model_files(names: Iterable[str], modules: bytes | None, code: bool) -> list[str]:
    """Chooses the files of a model.

    Args:
        names: paths of all files, below the repository's root.
        modules: content of its modules.json, if it has one.
        code: whether the model's own Python code is wanted, too.
    """
    folders: dict[str, list[str]] = {}
    everything = sorted(names)
    for name in everything:
        folder, _, base = name.rpartition("/")
        folders.setdefault(folder, []).append(base)
    of_modules = module_folders(modules)
    chosen = []
    for folder in dict.fromkeys(["", *of_modules]):
        bases = folders.get(folder, [])
        weights = weight_names(bases) if folder in of_modules else []
        kept = [base for base in bases if base in weights or base.endswith(SETTINGS)]
        chosen += [f"{folder}/{base}" if folder else base for base in kept]
    return chosen + ([name for name in everything if name.endswith(".py")] if code else [])


def module_folders(modules: bytes | None) -> list[str]:
    """The folders that modules.json names; the root of a plain transformers model, or of a broken modules.json."""
    if modules is None:
        return [""]
    try:
        return [str(entry["path"]).strip("/") for entry in json.loads(modules)]
    except (ValueError, TypeError, KeyError):  # whoever reads the model will name what is wrong
        return [""]


def files_in(folder: Path, code: bool) -> list[str]:
    """:func:`model_files` of a folder on this machine."""
    modules = (folder / MODULES).read_bytes() if (folder / MODULES).is_file() else None
    names: list[str] = []
    for inner in dict.fromkeys(["", *module_folders(modules)]):
        where = folder / inner
        if where.is_dir() and ".." not in Path(inner).parts:
            names += [path.relative_to(folder).as_posix() for path in where.iterdir() if path.is_file()]
    if code:
        names += [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
    return model_files(set(names), modules, code)


def require_content(paths: Sequence[Path]) -> None:
    """Raises ModelError if one of the files is a Git LFS pointer: a repository cloned without git-lfs."""
    for path in paths:
        if path.stat().st_size <= POINTER_BYTES and path.read_bytes().startswith(POINTER):
            raise ModelError(f"{path}: is a Git LFS pointer, not the file itself; run git lfs pull in the model folder")
