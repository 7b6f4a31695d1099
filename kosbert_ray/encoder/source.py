"""From a model's name to a folder on this machine: a local path, a hub name, an s3:// copy, or a bundled model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kosbert_ray.errors import ModelError, StorageError, first_line
from kosbert_ray.storage import Storage, StorageOptions, is_url

BUNDLED = Path(__file__).parent.parent / "bundled"
BUNDLED_PREFIX = "bundled:"
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
PICKLE_PATTERNS = ("*.bin", "*.bin.index.json")
CODE_PATTERNS = ("*.py",)
OTHER_PATTERNS = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: a hub name (``jhgan/ko-sbert-sts``), a folder, an ``s3://`` URL, or ``bundled:NAME``.
        revision: branch, tag or commit of a hub name.
        allow_pickle: also accept ``pytorch_model.bin`` (read with torch's restricted unpickler).
        allow_remote_code: also fetch the model's own Python code.
        storage: how to reach the object store of an ``s3://`` name.
    """

    name: str
    revision: str | None = None
    allow_pickle: bool = False
    allow_remote_code: bool = False
    storage: StorageOptions = field(default_factory=StorageOptions)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files that are fetched, wherever from."""
        more = (PICKLE_PATTERNS if self.allow_pickle else ()) + (CODE_PATTERNS if self.allow_remote_code else ())
        return OTHER_PATTERNS + WEIGHT_PATTERNS + more


def bundled_path(name: str) -> Path:
    """The folder or file behind ``bundled:NAME``."""
    path = BUNDLED / name.removeprefix(BUNDLED_PREFIX)
    if not path.exists() or BUNDLED not in path.resolve().parents:
        names = sorted(entry.name for entry in BUNDLED.iterdir() if entry.suffix != ".py" and entry.name[0] not in "._")
        raise ModelError(f"{name}: nothing of that name is bundled; there are {', '.join(names)}")
    return path


def cache_folder(name: str) -> Path:
    """Where this machine keeps what it would otherwise fetch or make again; not yet made."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kosbert-ray" / name


@contextlib.contextmanager
def filled_once(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then stands at ``folder``, whole or not at all; raises OSError where it cannot."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        yield partial
        try:
            partial.rename(folder)  # another process may have been faster: then theirs is as good
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def bundled_sentences() -> list[str]:
    """The texts of ``bundled:everyday``."""
    paths = sorted((BUNDLED / "everyday").glob("*.jsonl"))
    return [json.loads(line)["text"] for path in paths for line in path.read_text("utf-8").splitlines()]


def fetch_model(source: ModelSource) -> Path:
    """The model's folder on this machine, downloaded first if need be.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
        StorageError: the object store refuses.
    """
    if source.name.startswith(BUNDLED_PREFIX):
        return bundled_path(source.name)
    if is_url(source.name):
        return _fetch_store(source)
    folder = Path(source.name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"{source.name}: a model is a folder, and this is a file")
    if source.name.startswith((".", "/", "~")) or source.name.count("/") > 1:
        raise ModelError(f"{source.name}: no such model folder")
    return _fetch_hub(source)


def _fetch_hub(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    at = f" at {source.revision}" if source.revision else ""
    try:
        return Path(snapshot_download(source.name, revision=source.revision, allow_patterns=list(source.patterns)))
    except HFValidationError as error:
        raise ModelError(f"{source.name}: neither a folder here nor a hub name") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{source.name}{at}: the hub has no such model (or it is private: set HF_TOKEN)") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{source.name}{at}: the hub cannot be reached and the model is not in the cache; "
            "name a local folder or an s3:// copy with model.name"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{source.name}{at}: cannot be fetched ({first_line(error)})") from error


def _fetch_store(source: ModelSource) -> Path:
    """Copies an ``s3://`` model folder into the cache, under a name that changes with its content."""
    store = Storage(source.name, source.storage)
    entries = [entry for entry in store.list(recursive=True) if any(Path(entry.name).match(p) for p in source.patterns)]
    if not entries:
        raise ModelError(f"{source.name}: no model there (neither *.json nor *.safetensors)")
    content = "\n".join(f"{entry.name} {entry.size} {entry.version}" for entry in entries)
    cache = cache_folder("models")
    folder = cache / hashlib.sha256(f"{store.address}\n{content}".encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    try:
        with filled_once(folder) as partial:
            for entry in entries:
                target = partial / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with store.open(entry.name) as reader, open(target, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 8 * 2**20)
    except StorageError:
        raise
    except OSError as error:
        raise ModelError(f"{source.name}: cannot be copied to {cache} ({error.strerror or error})") from error
    return folder
