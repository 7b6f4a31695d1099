"""Resolves a model's name to a folder on this machine: a local path, a hub name, an s3:// copy, or a bundled model."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kosbert_ray.encoder.files import MODULES, files_in, model_files, module_folders
from kosbert_ray.errors import ModelError, StorageError, first_line
from kosbert_ray.storage import FAIL_FAST, Storage, StorageOptions, is_url

BUNDLED = Path(__file__).parent.parent / "bundled"
BUNDLED_PREFIX = "bundled:"
FIRST_FILES = ["modules.json", "config.json"]  # enough to resolve a hub model's commit and list its other files


@dataclass(frozen=True)
class ModelSource:
    """The name of a model and how to fetch it.

    Attributes:
        name: a hub name (``jhgan/ko-sbert-sts``), a folder, an ``s3://`` URL, or ``bundled:NAME``.
        revision: branch, tag or commit of a hub name.
        allow_remote_code: whether to fetch the model's own Python code, too.
        storage: options for the object store of an ``s3://`` name.
    """

    name: str
    revision: str | None = None
    allow_remote_code: bool = False
    storage: StorageOptions = FAIL_FAST


@dataclass(frozen=True)
class Fetched:
    """A model's folder on this machine.

    Attributes:
        folder: its path.
        commit: the commit that the revision of a hub model resolved to.
        frozen: whether the folder never changes, because it is a snapshot of a commit, a copy named by the hash of its
            content, or part of this package.
    """

    folder: Path
    commit: str | None = None
    frozen: bool = False


def bundled_path(name: str) -> Path:
    """Returns the folder or file of ``bundled:NAME``; raises ModelError if there is none."""
    path = BUNDLED / name.removeprefix(BUNDLED_PREFIX)
    if not path.exists() or BUNDLED not in path.resolve().parents:
        names = sorted(entry.name for entry in BUNDLED.iterdir() if entry.suffix != ".py" and entry.name[0] not in "._")
        raise ModelError(f"{name}: not a bundled name; available are {', '.join(names)}")
    return path


def cache_folder(name: str) -> Path:
    """Returns a folder of this machine's cache, which may not exist yet; raises ModelError without a home directory."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "kosbert-ray" / name
    except RuntimeError as error:  # a user without a home
        raise ModelError("no home directory to cache models in; set XDG_CACHE_HOME to a folder") from error


def cache_entry(name: str, parts: Iterable[str], suffix: str = "") -> Path:
    """Returns the path in a folder of the cache of what depends on ``parts``; raises ModelError as :func:`cache_folder`."""
    return cache_folder(name) / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}{suffix}"


@contextlib.contextmanager
def filled_once(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, and renames it to ``folder`` at the end, so that ``folder`` is never partial.

    Raises:
        OSError: the folder cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        yield partial
        try:
            partial.rename(folder)  # fails if another process was faster, whose copy is as good
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def bundled_sentences() -> list[str]:
    """Returns the texts of ``bundled:everyday``."""
    paths = sorted((BUNDLED / "everyday").glob("*.jsonl"))
    return [json.loads(line)["text"] for path in paths for line in path.read_text("utf-8").splitlines()]


def fetch_model(source: ModelSource) -> Path:
    """Returns the model's folder on this machine, downloading it if needed. Raises as :func:`fetch` does."""
    return fetch(source).folder


def fetch(source: ModelSource) -> Fetched:
    """Finds the model, downloading it if needed.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
        StorageError: the object store refuses access.
    """
    if source.name.startswith(BUNDLED_PREFIX):
        return Fetched(bundled_path(source.name), frozen=True)
    if is_url(source.name):
        return Fetched(_fetch_store(source), frozen=True)
    folder = Path(source.name).expanduser()
    if folder.is_dir():
        return Fetched(folder.resolve())
    if folder.exists():
        raise ModelError(f"{source.name}: a model is a folder, and this is a file")
    if source.name.startswith((".", "/", "~")) or source.name.count("/") > 1:
        raise ModelError(f"{source.name}: no such model folder")
    return _fetch_hub(source)


def _fetch_hub(source: ModelSource) -> Fetched:
    """Downloads a snapshot with the model's files only. Offline, returns what the hub's cache holds."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    at = f" at {source.revision}" if source.revision else ""
    try:
        folder = Path(snapshot_download(source.name, revision=source.revision, allow_patterns=FIRST_FILES))
        commit = folder.name
        try:
            names = HfApi().list_repo_files(source.name, revision=commit)
        except Exception as error:  # offline; the type depends on the HTTP library of the hub's client
            if not any(name.endswith((".safetensors", ".bin")) for name in files_in(folder, code=False)):
                raise ModelError(f"{source.name}{at}: its files cannot be listed ({first_line(error)})") from error
            return Fetched(folder, commit, frozen=True)
        modules = (folder / MODULES).read_bytes() if (folder / MODULES).exists() else None
        wanted = model_files(names, modules, source.allow_remote_code)
        snapshot_download(source.name, revision=commit, allow_patterns=[glob.escape(name) for name in wanted])
        return Fetched(folder, commit, frozen=True)
    except HFValidationError as error:
        raise ModelError(f"{source.name}: neither a folder here nor a hub name") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{source.name}{at}: the hub has no such model (or it is private: set HF_TOKEN)") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{source.name}{at}: the hub cannot be reached and the model is not in the cache; "
            "name a local folder or an s3:// copy with model.name"
        ) from error
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{source.name}{at}: cannot be fetched ({first_line(error)})") from error


def fetch_other_weights(source: ModelSource, folder: Path, commit: str | None) -> None:
    """Fetches a hub model's unused weights, which version 0.1.0 fetched and hashed, too.

    Does nothing if the hub cannot be reached: the files in its cache then have to do.
    """
    if commit is None:
        return
    from huggingface_hub import HfApi, snapshot_download

    with contextlib.suppress(Exception):
        suffix = ".safetensors" if any(folder.rglob("*.safetensors")) else ".bin"
        modules = (folder / MODULES).read_bytes() if (folder / MODULES).exists() else None
        folders = module_folders(modules)
        names = HfApi().list_repo_files(source.name, revision=commit)
        others = [name for name in names if name.endswith(suffix) and name.rpartition("/")[0] in folders]
        snapshot_download(source.name, revision=commit, allow_patterns=[glob.escape(name) for name in others])


def _fetch_store(source: ModelSource) -> Path:
    """Copies an ``s3://`` model folder into the cache, under a name that depends on its content."""
    store = Storage(source.name, source.storage)
    entries = {entry.name: entry for entry in store.list(recursive=True)}
    modules = store.read(MODULES) if MODULES in entries else None
    wanted = [entries[name] for name in model_files(entries, modules, source.allow_remote_code)]
    if not wanted:
        raise ModelError(f"{source.name}: no model there (neither *.json nor *.safetensors)")
    content = "\n".join(f"{entry.name} {entry.size} {entry.version}" for entry in wanted)
    cache = cache_folder("models")
    folder = cache / hashlib.sha256(f"{store.address}\n{content}".encode()).hexdigest()[:16]
    if not folder.is_dir():
        copy_from_store(store, [entry.name for entry in wanted], folder)
    return folder


def copy_from_store(store: Storage, names: Iterable[str], folder: Path) -> None:
    """Copies files of a store into a new folder of the cache.

    Raises:
        StorageError: the store refuses access.
        ModelError: the cache cannot be written to.
    """
    try:
        with filled_once(folder) as partial:
            for name in names:
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with store.open(name) as reader, open(target, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 8 * 2**20)
    except StorageError:
        raise
    except OSError as error:
        raise ModelError(f"{store.address}: cannot be copied to {folder.parent} ({error.strerror or error})") from error
