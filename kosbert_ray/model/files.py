"""The files of a model repository that its vectors depend on, and their hash.

A repository also holds weights of other frameworks, exports, checkpoints and training state. Only the files chosen here
are fetched, copied and hashed, from the hub, an object store or a folder alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kosbert_ray.errors import ModelError, first_line

# Stem and suffix of weights, in the order in which transformers looks for them.
WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))
PICKLES = (".bin", ".pt")  # suffixes
# Heads of BGE-M3 in a model's root: linear layers, each a file that also counts after its conversion to safetensors.
SPARSE_LINEAR, COLBERT_LINEAR = "sparse_linear", "colbert_linear"
M3_HEADS = (SPARSE_LINEAR, COLBERT_LINEAR)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
SETTINGS = (".json", ".txt", ".model", "artifact.metadata")  # the last one is of Stanford's ColBERT
MODULES = "modules.json"
ROUTER = "router_config.json"  # in the folder of a Router, whose modules are in folders beside it
POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024


def weight_names(names: Iterable[str]) -> list[str]:
    """Picks the weights among the file names of one folder: one file or its shards, safetensors before pickles."""
    there = set(names)
    for stem, suffix in WEIGHTS:
        if f"{stem}.{suffix}" in there:
            return [f"{stem}.{suffix}"]
        shards = sorted(name for name in there if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name))
        if shards and f"{stem}.{suffix}.index.json" in there:
            return shards
    return []


def adapter_weight_names(names: Iterable[str]) -> list[str]:
    """Picks the weights of a PEFT adapter among the file names of one folder: one file, or none."""
    there = set(names)
    return [name for name in ADAPTER_WEIGHTS if name in there][:1]


def head_names(names: Iterable[str]) -> list[str]:
    """Picks the heads of BGE-M3 among the file names of a model's root, safetensors before pickles."""
    there = set(names)
    found = ([f"{stem}{suffix}" for suffix in (".safetensors", ".pt") if f"{stem}{suffix}" in there] for stem in M3_HEADS)
    return [each[0] for each in found if each]


def head_paths(folder: Path) -> tuple[Path, ...]:
    """Returns the weights of BGE-M3's heads in a model's root."""
    return tuple(folder / name for name in head_names(path.name for path in folder.iterdir()))


def weight_paths(folder: Path) -> list[Path]:
    """Returns the weights that a module loads.

    Raises:
        ModelError: there are none, or a shard is missing.
    """
    names = weight_names(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        stray = next(iter(sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))), None)
        found = f"; {stray.name} is neither" if stray else ""
        raise ModelError(f"{folder}: no weights in it (model.safetensors or pytorch_model.bin{found})")
    paths = [folder / name for name in names]
    if len(paths) > 1 or "-of-" in names[0]:
        index = folder / f"{names[0].partition('-')[0]}{paths[0].suffix}.index.json"
        for name in sorted({str(shard) for shard in read_object(index).get("weight_map", {}).values()} - {*names}):
            raise ModelError(f"{folder / name}: missing, and {index.name} names it")
    return paths


def legacy_weight_paths(folder: Path) -> list[Path]:
    """Returns the files that version 0.1.0 hashed as a module's weights."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def tokenizer_paths(folder: Path) -> list[Path]:
    """Returns the tokenizer's files.

    Raises:
        ModelError: there is no vocabulary, for which transformers would make an empty tokenizer.
    """
    paths = [path for name in TOKENIZER_FILES for path in sorted(folder.glob(name))]
    if not any(path.name in VOCABULARIES or path.suffix == ".model" for path in paths):
        raise ModelError(f"{folder}: no tokenizer in it (none of {', '.join(VOCABULARIES)}, *.model)")
    return paths


def model_files(names: Iterable[str], modules: bytes | None, code: bool) -> list[str]:
    """Picks the files of a model.

    Args:
        names: paths of all files, below the repository's root.
        modules: content of its modules.json, if it has one.
        code: whether to include the model's own Python code.
    """
    folders: dict[str, list[str]] = {}
    everything = sorted(names)
    for name in everything:
        folder, _, base = name.rpartition("/")
        folders.setdefault(folder, []).append(base)
    of_modules = module_folders(modules)
    routers = [folder for folder in of_modules if ROUTER in folders.get(folder, ())]
    of_modules += [folder for folder in folders if folder and folder.rpartition("/")[0] in routers]
    chosen = []
    for folder in dict.fromkeys(["", *of_modules]):
        bases = folders.get(folder, [])
        weights = weight_names(bases) or adapter_weight_names(bases) if folder in of_modules else []
        if not folder:
            weights = [*weights, *head_names(bases)]
        kept = [base for base in bases if base in weights or base.endswith(SETTINGS)]
        chosen += [f"{folder}/{base}" if folder else base for base in kept]
    return chosen + ([name for name in everything if name.endswith(".py")] if code else [])


def module_folders(modules: bytes | None) -> list[str]:
    """Returns the folders named by modules.json, or the root if there is none or it is broken."""
    if modules is None:
        return [""]
    try:
        paths = [PurePosixPath(str(entry["path"]).strip("/")).as_posix() for entry in json.loads(modules)]
    except (ValueError, TypeError, KeyError):  # reported when the model is read
        return [""]
    return ["" if path == "." else path for path in paths]


def read_modules_list(folder: Path) -> bytes | None:
    """Returns the content of a folder's modules.json; None if it has none."""
    return (folder / MODULES).read_bytes() if (folder / MODULES).is_file() else None


def files_in(folder: Path, code: bool) -> list[str]:
    """Applies :func:`model_files` to a folder on this machine."""
    modules = read_modules_list(folder)
    names: list[str] = []
    for inner in dict.fromkeys(["", *module_folders(modules)]):
        where = folder / inner
        if where.is_dir() and ".." not in Path(inner).parts:
            depths = (where.iterdir(), where.glob("*/*")) if (where / ROUTER).is_file() else (where.iterdir(),)
            names += [path.relative_to(folder).as_posix() for paths in depths for path in paths if path.is_file()]
    if code:
        names += [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
    return model_files(set(names), modules, code)


def require_content(paths: Sequence[Path]) -> None:
    """Raises ModelError if a file is a Git LFS pointer, as in a repository cloned without git-lfs."""
    for path in paths:
        if path.stat().st_size <= POINTER_BYTES and path.read_bytes().startswith(POINTER):
            raise ModelError(f"{path}: is a Git LFS pointer, not the file itself; run git lfs pull in the model folder")


def sha256(folder: Path, files: Sequence[Path]) -> str:
    """Hashes the names, sizes and contents of files below ``folder`` into one hex digest. Mostly runs outside the GIL."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Reads a JSON file of a model.

    Raises:
        ModelError: it is missing, broken or a Git LFS pointer.
    """
    try:
        require_content([path])
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing from the model folder") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a model that holds an object. Raises ModelError as :func:`read_json`, or if it holds none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object, and holds {json.dumps(content, ensure_ascii=False)[:40]}")
    return content
