"""Resolves a model's name to a folder on this machine: a local path, a hub name, an s3:// copy, or a bundled model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from kosbert_ray.errors import ModelError, StorageError
from kosbert_ray.model import hub
from kosbert_ray.model.files import MODULES, files_in, model_files
from kosbert_ray.storage import FAIL_FAST, Storage, StorageOptions, is_url

BUNDLED = Path(__file__).parent.parent / "bundled"
BUNDLED_PREFIX = "bundled:"


@dataclass(frozen=True)
class ModelSource:
    """The name of a model and how to fetch it.

    Attributes:
        name: a hub name (``jhgan/ko-sbert-sts``), a folder, an ``s3://`` URL, or ``bundled:NAME``.
        revision: branch, tag or commit of a hub name.
        allow_remote_code: whether to fetch the model's own Python code, too.
        storage: options for the object store of an ``s3://`` name.
        commits: commits to use by name of a hub repository, of the model's own and of others that it refers to.
    """

    name: str
    revision: str | None = None
    allow_remote_code: bool = False
    storage: StorageOptions = FAIL_FAST
    commits: Mapping[str, str] = field(default_factory=dict)

    @property
    def commit(self) -> str | None:
        """The commit or revision of a hub name to use; None for its newest."""
        return self.commits.get(self.name, self.revision)


@dataclass(frozen=True)
class Fetched:
    """A model's folder on this machine.

    Attributes:
        folder: its path.
        commit: the commit that the revision of a hub model resolved to.
        frozen: whether the folder never changes, because it is a snapshot of a commit, a copy named by the hash of its
            content, or part of this package.
        combined: whether the folder combines several repositories, or was converted.
        made_of: digest of the weights that those in the folder were computed from, if they were.
        converted: whether ``made_of`` is the digest of all files that the folder was converted from, not of weights only.
        commits: commits by name of the other hub repositories in it.
        notices: messages for the user.
    """

    folder: Path
    commit: str | None = None
    frozen: bool = False
    combined: bool = False
    made_of: str | None = None
    converted: bool = False
    commits: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def into(
        self,
        folder: Path,
        commits: Mapping[str, str],
        *notices: str,
        made_of: str | None = None,
        converted: bool = False,
    ) -> Fetched:
        """Returns the model in a folder of the cache that combines it with other repositories, or was converted.

        Args:
            folder: the folder.
            commits: commits of these repositories, by name.
            notices: messages for the user.
            made_of: digest of the weights that those in the folder were computed from, if they were.
            converted: whether ``made_of`` stands for all files.
        """
        return replace(
            self,
            folder=folder,
            frozen=True,
            combined=True,
            made_of=made_of or self.made_of,
            converted=converted or self.converted,
            commits={**self.commits, **commits},
            notices=(*self.notices, *notices),
        )


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


def node_folder(key: str) -> Path:
    """The folder of this name on a node, separate for each user because the temporary folder is shared."""
    return Path(tempfile.gettempdir()) / f"kosbert-ray-{os.getuid()}-{key}"


def fill_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Creates a folder with the content that ``fill`` writes, unless it exists; it is never seen half-filled.

    Processes of one machine wait for the one that fills it.

    Args:
        folder: the folder.
        fill: writes its content into an empty folder on the same disk.

    Raises:
        OSError: the folder cannot be created.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"partial-{folder.name}-"
    with _locked(folder.with_name(f"{folder.name}.lock")) as locked:
        if folder.is_dir():
            return
        for killed in folder.parent.glob(f"{prefix}*") if locked else ():
            shutil.rmtree(killed, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            fill(partial)
            try:
                partial.rename(folder)  # fails if a process elsewhere on a shared disk was faster; its copy is as good
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds a lock that ends with its process. Yields False where the file system has no locks."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except (NotImplementedError, OSError):  # as on some network file systems: work may be done twice
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def bundled_sentences() -> list[str]:
    """Returns the texts of ``bundled:everyday``."""
    paths = sorted((BUNDLED / "everyday").glob("*.jsonl"))
    return [json.loads(line)["text"] for path in paths for line in path.read_text("utf-8").splitlines()]


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
    snapshot, commit = hub.fetch_snapshot(source.name, source.commit, source.allow_remote_code)
    return Fetched(snapshot, commit, frozen=True)


def state_of(folder: Path) -> str:
    """Describes a model's files by name, size and time of change, to recognize a folder that changes."""
    stats = ((name, (folder / name).stat()) for name in sorted(files_in(folder, code=True)))
    return "\n".join([str(folder), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)])


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
    copy_from_store(store, [entry.name for entry in wanted], folder)
    return folder


def copy_from_store(store: Storage, names: Iterable[str], folder: Path) -> None:
    """Copies files of a store into a folder of the cache, unless it exists.

    Raises:
        StorageError: the store refuses access.
        ModelError: the cache cannot be written to.
    """

    def fill(partial: Path) -> None:
        for name in names:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.open(name) as reader, open(target, "wb") as writer:
                shutil.copyfileobj(reader, writer, 8 * 2**20)

    try:
        fill_once(folder, fill)
    except StorageError:
        raise
    except OSError as error:
        raise ModelError(f"{store.address}: cannot be copied to {folder.parent} ({error.strerror or error})") from error
