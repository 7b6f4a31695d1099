"""Fetches a model's Python code from the repository that its config names (``auto_map``: ``OWNER/NAME--file.Class``)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError
from kosbert_ray.model import files, hub
from kosbert_ray.model.source import Fetched, ModelSource, cache_entry, fill_once, state_of

VERSION = "code 1"  # part of a copy's name; raise the number when the layout of the copy changes
CONFIGS = ("config.json", "tokenizer_config.json")


def add_code(fetched: Fetched, source: ModelSource) -> Fetched:
    """Returns a copy in the cache with the code beside the weights, or ``fetched`` if no other repository is named.

    Args:
        fetched: a model's folder.
        source: where the model is from; its ``commits`` pin the repository of the code.

    Raises:
        ModelError: the code cannot be fetched, or its files collide with others.
    """
    if not source.allow_remote_code:
        return fetched
    folder = fetched.folder
    inner = next(iter(files.module_folders(files.read_modules_list(folder))), "")
    transformer = folder / inner
    configs = {name: files.read_object(transformer / name) for name in CONFIGS if (transformer / name).is_file()}
    owners = sorted({owner for config in configs.values() for owner in _owners(config.get("auto_map"))})
    if not owners:
        return fetched
    codes = {owner: hub.fetch_code(owner, source.commits.get(owner)) for owner in owners}
    commits = {owner: commit for owner, (_, commit) in codes.items()}
    target = cache_entry("models", [VERSION, fetched.commit or state_of(folder), json.dumps(commits, sort_keys=True)])

    def fill(partial: Path) -> None:
        for name in files.files_in(folder, code=True):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _take(folder / name, partial / name, fetched.frozen)
        for code, _ in codes.values():
            _add(code, partial / inner)
        for name, config in configs.items():
            (partial / inner / name).unlink()
            here = config | ({"auto_map": _here(config["auto_map"])} if "auto_map" in config else {})
            (partial / inner / name).write_text(json.dumps(here, ensure_ascii=False, indent=2), "utf-8")

    fill_once(target, fill)
    notices = (f"{source.name}: its Python code is from {name} at {commit}" for name, commit in commits.items())
    return fetched.into(target, commits, *notices)


def _owners(tree: Any) -> list[str]:
    """Lists the repositories in a tree of lists and mappings of class names."""
    if isinstance(tree, str):
        return [tree.partition("--")[0]] if "--" in tree else []
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [owner for item in inner for owner in _owners(item)]


def _here(tree: Any) -> Any:
    """Returns the tree with names that mean the model's own folder."""
    if isinstance(tree, str):
        return tree.rpartition("--")[2]
    if isinstance(tree, dict):
        return {key: _here(value) for key, value in tree.items()}
    return [_here(item) for item in tree] if isinstance(tree, list) else tree


def _take(path: Path, target: Path, frozen: bool) -> None:
    """Copies a file; one that never changes is linked where the disk allows it, since weights are large."""
    if frozen:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass
    shutil.copyfile(path, target)


def _add(code: Path, target: Path) -> None:
    """Copies Python files; raises ModelError if one of another content is there."""
    for path in sorted(code.rglob("*.py")):
        place = target / path.relative_to(code)
        if place.exists() and place.read_bytes() != path.read_bytes():
            raise ModelError(f"{place.name}: the model has another file of this name than the repository of its code")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
