"""Converts ColBERT checkpoints of PyLate and of Stanford's library to the format of sentence-transformers, once.

sentence-transformers reads both (``MultiVectorEncoder``), and does the conversion. Where it finds no projection it makes a
random one; such checkpoints are refused before.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kosbert_ray.errors import KosbertError, ModelError, first_line
from kosbert_ray.model import files
from kosbert_ray.model.pickled import copy_model
from kosbert_ray.model.source import Fetched, ModelSource, cache_entry, fill_once, state_of
from kosbert_ray.model.support import MODEL_SETTINGS, PROJECTION, is_stanford
from kosbert_ray.model.tensors import read_shapes

VERSION = "colbert 1"  # part of a converted copy's name; raise the number when the conversion changes
RECORD = "converted.json"  # in a converted copy: the digest of what it was made from
PYLATE, PYLATE_DENSE, DENSE = "pylate.", "pylate.models.Dense.Dense", "Dense"

log = logging.getLogger(__name__)


def convert_colbert(fetched: Fetched, source: ModelSource) -> Fetched:
    """Returns a converted copy in the cache of PyLate's or Stanford's ColBERT, or ``fetched`` if it is neither.

    Args:
        fetched: a model's folder.
        source: where the model is from.

    Raises:
        ModelError: the checkpoint has no projection, sentence-transformers is not installed or cannot read it.
    """
    folder = fetched.folder
    found = _format(folder)
    if found is None:
        return fetched
    name, require_projection = found
    require_projection(folder)
    target = cache_entry("models", [VERSION, fetched.commit or state_of(folder)])

    def fill(partial: Path) -> None:
        _require_library(source.name, name)
        log.info(f"{source.name}: converting {name}'s ColBERT (once)")
        names = files.files_in(folder, code=False)
        paths = [folder / each for each in names]
        files.require_content(paths)
        made_of = files.sha256(folder, paths)
        (partial / "source").mkdir()
        if any(path.suffix in files.PICKLES for path in paths):
            copy_model(folder, names, partial / "source")
            _convert(partial / "source", partial, source.name)
        else:
            _convert(folder, partial, source.name)
        shutil.rmtree(partial / "source")
        (partial / RECORD).write_text(json.dumps({"files": made_of}), "utf-8")

    fill_once(target, fill)
    made_of = str(files.read_object(target / RECORD)["files"])
    notice = f"{source.name} is a ColBERT in the format of {name}, converted to that of sentence-transformers"
    return fetched.into(target, {}, notice, made_of=made_of, converted=True)


def _format(folder: Path) -> tuple[str, Callable[[Path], None]] | None:
    """Returns whose format a folder has, and what checks its projection; None if it is to be read as it is."""
    if not (folder / files.MODULES).is_file():
        return ("Stanford", _require_stanford_projection) if is_stanford(folder) else None
    settings = files.read_object(folder / MODEL_SETTINGS) if (folder / MODEL_SETTINGS).is_file() else {}
    pylate = settings.get("model_type") == "ColBERT" or any(kind.startswith(PYLATE) for kind, _ in _modules(folder))
    return ("PyLate", _require_pylate_projection) if pylate else None


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Returns type and subfolder of the modules; nothing of a broken list, which is reported when the model is read."""
    try:
        return [(str(entry["type"]), str(entry["path"])) for entry in files.read_json(folder / files.MODULES)]
    except (TypeError, KeyError):
        return []


def _require_stanford_projection(folder: Path) -> None:
    if PROJECTION not in read_shapes(files.weight_paths(folder)):
        raise ModelError(
            f"{folder}: a ColBERT checkpoint in Stanford's format without its projection ({PROJECTION}), for which "
            "sentence-transformers would make a random one"
        )


def _require_pylate_projection(folder: Path) -> None:
    modules = _modules(folder)
    for kind, path in modules:
        if kind != PYLATE_DENSE and not kind.startswith("sentence_transformers."):
            raise ModelError(f"{folder}: module {kind} is custom code, which is not supported")
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise ModelError(f"{folder}: modules.json points outside the folder ({path})")
    projections = [path for kind, path in modules if kind.rpartition(".")[2] == DENSE]
    if not projections:
        raise ModelError(f"{folder}: a ColBERT in PyLate's format without a projection ({DENSE} is not among its modules)")
    for path in projections:
        if PROJECTION not in read_shapes(files.weight_paths(folder / path)):
            raise ModelError(f"{folder / path}: a ColBERT's projection without its weights ({PROJECTION})")


def _require_library(model: str, name: str) -> None:
    """Raises ModelError unless a sentence-transformers is installed that has ``MultiVectorEncoder``."""
    remedy = f"{model}: a ColBERT in the format of {name}; to convert it, pip install --upgrade 'kosbert-ray[train]'"
    if find_spec("sentence_transformers") is None:
        raise ModelError(f"{remedy} (sentence-transformers is missing)")
    try:
        from sentence_transformers import MultiVectorEncoder  # noqa: F401
    except ImportError as error:
        raise ModelError(f"{remedy} ({first_line(error)})") from error


def _convert(folder: Path, target: Path, model: str) -> None:
    """Writes a checkpoint in the format of sentence-transformers.

    Args:
        folder: the checkpoint, with safetensors only.
        target: where to write it.
        model: the model's name, for messages.
    """
    from sentence_transformers import MultiVectorEncoder
    from transformers import AutoTokenizer
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    transformer = folder / next((path for _, path in _modules(folder)), "") if (folder / files.MODULES).exists() else folder
    try:
        _require_whole(transformer)
        encoder: Any = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
        encoder.save_pretrained(str(target), create_model_card=False)
        before: Any = AutoTokenizer.from_pretrained(transformer, local_files_only=True)
        after = encoder.tokenizer
    except KosbertError:
        raise
    except Exception as error:  # both libraries raise many types
        raise ModelError(f"{model}: sentence-transformers cannot convert it ({first_line(error)})") from error
    if str(before.added_tokens_decoder) == str(after.added_tokens_decoder):
        # The tokenizer's files are part of an output's fingerprint, and libraries write them in changing ways.
        place = target / next((path for _, path in _modules(target)), "")
        for path in files.tokenizer_paths(place):
            path.unlink()
        for path in files.tokenizer_paths(transformer):
            shutil.copyfile(path, place / path.name)


def _require_whole(transformer: Path) -> None:
    """Raises ModelError if the checkpoint lacks weights of the transformer, which would become random ones."""
    from transformers import AutoModel

    _, info = AutoModel.from_pretrained(transformer, local_files_only=True, use_safetensors=True, output_loading_info=True)
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(f"{transformer}: {len(missing)} weights are missing ({missing[0]}, …)")
